"""Rules of `crl`: revocation lists of a route's clients or a pool's backends.

Never: reads a list, or resolves a name.
"""

from __future__ import annotations

from relay.config.address import host_name_fault, is_ip
from relay.config.crl_url import parse_crl_url
from relay.config.explain import quoted
from relay.config.listener_model import Route
from relay.config.pool_model import Pool
from relay.config.rules.problem_list import ProblemList
from relay.config.section import Crl


def check_revocation(found: ProblemList, where: str, settings: Route | Pool, short: str) -> None:
    """The `crl` and its short form in the route or pool at this key path."""
    crl = settings.crl
    files = getattr(settings, short)
    if crl is None:
        _repeated(found, f"{where}.{short}", files)
        return
    here = f"{where}.crl"
    if files:
        found.add(
            f"{where}.{short}",
            f"is the short form of {here}.files, and {here} is there, too",
            f"move its files to {here}.files",
            compared=[here],
        )
    if not (crl.files or crl.urls or crl.from_certificates):
        found.add(
            here,
            "names no list",
            "set files, urls or from_certificates, or remove crl",
            compared=[f"{here}.{key}" for key in ("files", "urls", "from_certificates")],
        )
    _repeated(found, f"{here}.files", crl.files)
    _repeated(found, f"{here}.urls", crl.urls)
    _urls(found, here, crl)
    _hosts(found, here, crl)
    if crl.expired == "refuse" and "grace_s" in crl.model_fields_set:
        found.add(
            f"{here}.grace_s",
            'has no effect: an expired list counts longer only with expired = "grace"',
            'set expired = "grace", or remove grace_s',
            compared=[f"{here}.expired"],
        )


def _urls(found: ProblemList, here: str, crl: Crl) -> None:
    for index, url in enumerate(crl.urls):
        try:
            parse_crl_url(url)
        except ValueError as error:
            remedy = 'write a URL such as "http://pki.example.com/ca.crl"'
            found.add(f"{here}.urls[{index}]", f"{quoted(url)} {error}", remedy)


def _hosts(found: ProblemList, here: str, crl: Crl) -> None:
    for index, host in enumerate(crl.hosts):
        bare = host.strip("[]")
        fault = "" if is_ip(bare) else host_name_fault(host)
        if fault:
            found.add(
                f"{here}.hosts[{index}]",
                f"{quoted(host)} {fault}",
                "write a host name or an IP address, without http:// and without a port",
            )
    if crl.from_certificates and not crl.hosts:
        found.add(
            f"{here}.hosts",
            "is missing: with from_certificates, the CA of a certificate names the URLs",
            'list the hosts that lists may be fetched from, for example ["pki.example.com"]',
            compared=[f"{here}.from_certificates"],
        )
    elif crl.hosts and not (crl.urls or crl.from_certificates):
        found.add(
            f"{here}.hosts",
            "has no effect: nothing is fetched",
            "set urls or from_certificates, or remove hosts",
            compared=[f"{here}.urls", f"{here}.from_certificates"],
        )


def _repeated(found: ProblemList, where: str, values: tuple[object, ...]) -> None:
    for index, each in enumerate(values):
        if each in values[:index]:
            found.add(f"{where}[{index}]", f"{quoted(each)} is already in the list", "remove it")
