"""Rules of a route's `allow` and `deny`: each entry can match a certificate.

Never: sees a certificate (see `tls.access_rules`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv6Network, ip_network

from relay.config.address import host_name_fault
from relay.config.distinguished_name import fold, parse_name
from relay.config.explain import quoted
from relay.config.listener_model import Allow, Route
from relay.config.rules.problem_list import ProblemList

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
# OpenSSL also accepts more than the 20 bytes of RFC 5280. It prints a minus sign
# before a negative number.
_SERIAL = re.compile(r"-?0*[0-9a-f]{1,128}")
_KEY_ID = re.compile(r"([0-9a-f]{2}){1,64}")
# RFC 5321, 4.1.2: a dot-string. Quoted local parts are not supported.
_LOCAL_PART = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}")
_ISSUER_REMEDY = (
    'write its subject as RFC 4514 text, for example "CN=Clients CA,O=Example", or its key id'
    " in hexadecimal; see: openssl x509 -in CA -noout -subject -nameopt RFC2253 -ext"
    " subjectKeyIdentifier"
)

# What is wrong with one entry, and the remedy; None if nothing is.
_Fault = tuple[str, str] | None


def check_access(found: ProblemList, where: str, route: Route) -> None:
    """The `allow` and `deny` of the route at this key path."""
    for key, lists, empty, remedy in (
        (
            "allow",
            route.allow,
            "lists nothing, which would allow every client",
            (
                "name at least one certificate to allow, or remove allow to accept every"
                " certificate of client_ca"
            ),
        ),
        (
            "deny",
            route.deny,
            "lists nothing, so it denies no client",
            "name at least one certificate to deny, or remove deny",
        ),
    ):
        here = f"{where}.{key}"
        # An empty allow would accept every certificate, and nothing would show it.
        replaced = any(path.startswith(f"{here}.") for path in found.replaced)
        given = key in route.model_fields_set
        if given and not replaced and not any(getattr(lists, kind) for kind in Allow.model_fields):
            found.add(here, empty, remedy)
        for kind, check in _CHECKS.items():
            for index, text in enumerate(getattr(lists, kind)):
                fault = check(text)
                if fault:
                    found.add(f"{here}.{kind}[{index}]", f"{quoted(text)} {fault[0]}", fault[1])
    _contradictions(found, where, route)
    allows = any(getattr(route.allow, kind) for kind in Allow.model_fields)
    if route.accept_server_certificates and not allows:
        found.add(
            f"{where}.accept_server_certificates",
            "needs an allow: public CAs issue certificates for servers to anybody",
            "name the clients in allow, for example by san_dns, or remove it",
            compared=[f"{where}.allow"],
        )


def entry_fault(kind: str, text: str) -> str:
    """What is wrong with an entry of `allow` or `deny`; "" if it is valid."""
    fault = _CHECKS[kind](text)
    return fault[0] if fault else ""


def _contradictions(found: ProblemList, where: str, route: Route) -> None:
    """Entries of allow that can never allow anybody: deny is judged first."""
    for kind, check in _CHECKS.items():
        allowed = [text for text in getattr(route.allow, kind) if not check(text)]
        known = {_same(kind, text): text for text in allowed}
        for index, text in enumerate(getattr(route.deny, kind)):
            if not check(text) and _same(kind, text) in known:
                found.add(
                    f"{where}.deny.{kind}[{index}]",
                    f"{quoted(text)} is also in allow.{kind}, and deny is judged first",
                    "remove it from one of the two lists",
                    compared=[f"{where}.allow.{kind}"],
                )


def _same(kind: str, text: str) -> object:
    """A value that is equal for entries with the same meaning."""
    if kind == "ip":
        return ip_network(text)
    if kind == "email":
        local, _, domain = text.rpartition("@")
        return local, domain.lower()
    if kind == "serial":
        return int(text, 16)
    if kind == "issuer":
        return parse_name(text) if "=" in text else _bare(text)
    return fold(text) if kind in {"cn", "ou"} else text


def _text(text: str) -> _Fault:
    if text and text.isprintable():
        return None
    return (
        "cannot match any certificate",
        "write the text as it is in the certificate, or remove this entry",
    )


def _san_dns(pattern: str) -> _Fault:
    name = pattern.removeprefix("*.")
    why = "has a * that is not its whole first label" if "*" in name else host_name_fault(name)
    remedy = 'write a host name, or "*.example.com" for all names with one more label'
    return (why, remedy) if why else None


def _san_uri(text: str) -> _Fault:
    if any("**" in segment and segment != "**" for segment in text.split("/")):
        return (
            "has a ** that is not a whole path segment",
            'write "*" for a part of a segment, and "/**" for whole segments',
        )
    return _text(text)


def _ip(text: str) -> _Fault:
    remedy = 'write an address or a range, for example "192.0.2.7" or "10.0.0.0/8"'
    address, slash, length = text.partition("/")
    if slash and not re.fullmatch("[0-9]{1,3}", length):
        return "does not end in the number of bits that count", remedy
    try:
        network = ip_network(text)
    except ValueError:
        try:
            wide = ip_network(text, strict=False)
        except ValueError:
            return "is not an IP address or a range of addresses", remedy
        # Only the bits of the host are wrong.
        return (
            f"is not a range: {address} has bits beyond its {slash}{wide.prefixlen}",
            f'write "{wide}" for the range, or "{address}" for the address',
        )
    if "%" in text:
        return "has a scope, and no certificate has one", remedy
    if isinstance(network, IPv6Network) and (v4 := network.network_address.ipv4_mapped):
        return "is an IPv4 address written as IPv6", f'write for example "{v4}"'
    return None


def _email(text: str) -> _Fault:
    remedy = 'write for example "alice@example.com", or "*@example.com" for a whole domain'
    local, at, domain = text.rpartition("@")
    if not at:
        return "is not a mail address: it has no @", remedy
    if why := host_name_fault(domain.lower()):
        return f"has a domain that {why}", remedy
    if local != "*" and ("*" in local or not _LOCAL_PART.fullmatch(local)):
        return "has a part before the @ that is neither a mailbox nor a * alone", remedy
    return None


def _issuer(text: str) -> _Fault:
    if "=" in text:
        try:
            parse_name(text)
        except ValueError as error:
            return str(error), _ISSUER_REMEDY
        return None
    if _KEY_ID.fullmatch(_bare(text)):
        return None
    return "is neither the name of a CA nor its key id", _ISSUER_REMEDY


def _bare(text: str) -> str:
    return text.replace(":", "").lower()


def _serial(text: str) -> _Fault:
    if _SERIAL.fullmatch(text):
        return None
    return (
        "is not a serial number of at most 128 hexadecimal digits",
        "write it with or without colons; see: openssl x509 -in FILE -noout -serial",
    )


def _fingerprint(text: str) -> _Fault:
    if _FINGERPRINT.fullmatch(text):
        return None
    return (
        f"is not a SHA-256 fingerprint: it has {len(text)} characters without colons",
        (
            "write 64 hexadecimal digits, with or without colons; see: openssl x509 -in FILE"
            " -noout -fingerprint -sha256"
        ),
    )


_CHECKS: dict[str, Callable[[str], _Fault]] = {
    "cn": _text,
    "san_dns": _san_dns,
    "san_uri": _san_uri,
    "ip": _ip,
    "email": _email,
    "ou": _text,
    "issuer": _issuer,
    "serial": _serial,
    "fingerprint_sha256": _fingerprint,
}
