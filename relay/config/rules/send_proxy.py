"""Rules of the PROXY header that a pool's backends get.

Never: builds a header (that is `relay.core.proxy_header_out`).
"""

from __future__ import annotations

from relay.config.explain import nearest, quoted
from relay.config.pool_model import PROXY_TLVS, Pool
from relay.config.rules.problem_list import ProblemList


def check_send_proxy(found: ProblemList, where: str, pool: Pool) -> None:
    """What the pool at this key path tells its backends about a client."""
    names = pool.send_proxy_tlvs or ()
    for index, name in enumerate(names):
        _check_name(found, f"{where}.send_proxy_tlvs[{index}]", name, names[:index])
    if pool.send_proxy.startswith("v2"):
        return
    why = (
        'has no effect with send_proxy = "v1", which has only addresses'
        if pool.send_proxy
        else "has no effect without send_proxy"
    )
    for key, is_set in (
        ("send_proxy_tlvs", pool.send_proxy_tlvs is not None),
        ("send_proxy_certificate", pool.send_proxy_certificate),
    ):
        if is_set:
            found.add(
                f"{where}.{key}",
                why,
                'set send_proxy = "v2" or "v2-inside-tls", or remove this key',
                compared=[f"{where}.send_proxy"],
            )


def _check_name(found: ProblemList, where: str, name: str, earlier: tuple[str, ...]) -> None:
    if name in earlier:
        found.add(where, f"{quoted(name)} is already in the list", "remove it")
    elif name not in PROXY_TLVS:
        if name in {"certificate", "ssl_certificate", "ssl_client_cert"}:
            remedy = "set send_proxy_certificate = true for the client's certificate"
        elif meant := nearest(name, PROXY_TLVS):
            remedy = f"did you mean {quoted(meant)}?"
        else:
            remedy = f"write some of {', '.join(map(quoted, PROXY_TLVS))}"
        found.add(where, f"there is no TLV {quoted(name)}", remedy)
