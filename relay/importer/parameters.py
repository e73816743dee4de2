"""What becomes of the parameters of a BalancerMember, ProxySet or ProxyPass.

Never: changes a pool.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from relay.importer.proxying import Parameters, Url
from relay.importer.report import Verdict

_UNITS = {"": 1, "s": 1, "ms": 0.001, "mi": 60, "min": 60, "m": 60, "h": 3600}
_YEAR_S = 31_536_000


class Parameter(NamedTuple):
    """The verdict about one parameter, and why; "" is nothing to say."""

    verdict: Verdict
    reason: str = ""


_OWN_CONNECTION = "each client has its own backend connection"
PARAMETERS = {
    "route": Parameter(Verdict.SAME),
    "loadfactor": Parameter(Verdict.SAME),
    "status": Parameter(Verdict.SAME),
    "retry": Parameter(Verdict.SAME),
    "timeout": Parameter(Verdict.SAME),
    "connectiontimeout": Parameter(Verdict.SAME),
    "max": Parameter(Verdict.BETTER, "over all workers, not per process"),
    "redirect": Parameter(
        Verdict.LOST, "clients of a drained backend go where balancing puts them"
    ),
    "lbset": Parameter(Verdict.LOST, "two levels only: backends and standbys"),
    **dict.fromkeys(
        ("keepalive", "ttl", "smax", "min", "disablereuse", "enablereuse", "ping", "acquire"),
        Parameter(Verdict.LOST, f"not needed: {_OWN_CONNECTION}"),
    ),
    **dict.fromkeys(
        (
            "flushpackets",
            "flushwait",
            "iobuffersize",
            "receivebuffersize",
            "responsefieldsize",
            "addressttl",
            "upgrade",
            "secret",
        ),
        Parameter(Verdict.LOST, "not needed: relay moves bytes at once, and reads no response"),
    ),
    **dict.fromkeys(
        ("failonstatus", "failontimeout"), Parameter(Verdict.LOST, "relay sees no status")
    ),
    "maxattempts": Parameter(Verdict.SAME, "every usable backend is tried"),
    "forcerecovery": Parameter(Verdict.SAME, "if all have failed, one is tried anyway"),
    "nofailover": Parameter(Verdict.LOST, "a session whose backend is down goes to another one"),
    "scolonpathdelim": Parameter(Verdict.SAME, "always on"),
    "stickysession": Parameter(Verdict.SAME),
    "stickysessionsep": Parameter(Verdict.SAME),
    "lbmethod": Parameter(Verdict.SAME),
    "nonce": Parameter(Verdict.SAME, "not needed: the page is not on the listener"),
    "growth": Parameter(Verdict.SAME, "new backends come by a reload"),
    "hcmethod": Parameter(Verdict.BETTER, "a check is a whole mutual TLS handshake, then the GET"),
    "hcuri": Parameter(Verdict.SAME),
    "hcinterval": Parameter(Verdict.SAME),
    "hcpasses": Parameter(Verdict.SAME),
    "hcfails": Parameter(Verdict.SAME),
    "hctemplate": Parameter(Verdict.BY_HAND, "write the template into health"),
    "hcexpr": Parameter(Verdict.BY_HAND, "http_status; the body is not looked at"),
}
_HARMLESS_OFF = {"nofailover", "failontimeout", "disablereuse"}
_NEEDLESS = "not needed"


def verdict_of(parameters: Parameters, url: Url | None, words: list[str]) -> tuple[Verdict, str]:
    """One verdict for a line, and what to know about its parameters, or ""."""
    verdict = Verdict.BY_HAND if words else Verdict.SAME
    reasons: dict[tuple[Verdict, str], list[str]] = {}
    for name, (text, _) in parameters.items():
        if name in _HARMLESS_OFF and text.lower() == "off":
            continue
        found = PARAMETERS.get(name, Parameter(Verdict.BY_HAND, "not known to the importer"))
        if found.reason:
            reasons.setdefault(found, []).append(name)
    for (kind, reason), names in reasons.items():
        words.append(f"{', '.join(names)}: {kind}: {reason}")
        # What is not needed does not make the line lost.
        if kind is Verdict.BY_HAND or (kind is Verdict.LOST and not reason.startswith(_NEEDLESS)):
            verdict = Verdict.BY_HAND
        elif kind is Verdict.BETTER and verdict is Verdict.SAME:
            verdict = kind
    if url is not None and url.path not in {"", "/"}:
        words.append(f"the path {url.path} is not added: requests arrive as the client sent them")
        verdict = Verdict.BY_HAND
    return verdict, "; ".join(words)


def seconds(text: str) -> float | None:
    """A time of httpd in seconds, at least 1 ms; None if it is none."""
    match = re.fullmatch(r"([0-9]{1,9})(ms|mi|min|m|s|h)?", text.strip().lower())
    if match is None:
        return None
    value = int(match[1]) * _UNITS[match[2] or ""]
    return min(value, _YEAR_S) if value > 0 else None
