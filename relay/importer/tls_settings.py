"""TLS versions, ciphers and groups of httpd, as relay has them.

Never: enables a cipher or version that relay would refuse.
"""

from __future__ import annotations

import re

from relay.config.values import (
    CIPHERS_TLS12,
    CIPHERSUITES_TLS13,
    MAX_CAS,
)
from relay.importer.material import origin
from relay.importer.report import Report, Verdict
from relay.importer.toml import Table
from relay.importer.tree import Directive, Scope

_EVERY = ("sslv2", "sslv3", "tlsv1", "tlsv1.1", "tlsv1.2", "tlsv1.3")
VERSIONS = {"tlsv1.2": "TLSv1.2", "tlsv1.3": "TLSv1.3"}
_GROUPS = {
    "prime256v1": "P-256",
    "secp256r1": "P-256",
    "p-256": "P-256",
    "secp384r1": "P-384",
    "p-384": "P-384",
    "secp521r1": "P-521",
    "p-521": "P-521",
    "x25519": "X25519",
    "x448": "X448",
    "x25519mlkem768": "X25519MLKEM768",
}
_TLS12 = frozenset(CIPHERS_TLS12.split(":"))
_TLS13 = frozenset(CIPHERSUITES_TLS13.split(":"))


def put_versions(table: Table, directive: Directive | None, report: Report) -> None:
    """`min_version` and `max_version`, from SSLProtocol or SSLProxyProtocol."""
    if directive is None:
        return
    words = [each for each in re.split(r"[\s,:]+", " ".join(directive.args).lower()) if each]
    only_removed = all(each.startswith("-") for each in words) and "-all" not in words
    enabled = set(_EVERY[2:]) if only_removed else set()
    unknown = []
    for number, word in enumerate(words):
        name = word.lstrip("+-")
        names = set(_EVERY[2:]) if name == "all" else {name}
        if not names <= set(_EVERY):
            unknown.append(word)
        elif word.startswith("-"):
            enabled -= names
        elif word.startswith("+") or number:
            enabled |= names
        else:
            enabled = names
    versions = [VERSIONS[each] for each in ("tlsv1.2", "tlsv1.3") if each in enabled]
    if not versions:
        table.put("min_version", "TLSv1.2", origin(directive))
        reason = "it has neither TLS 1.2 nor 1.3, and relay has no other: raise the peers"
        report.say(directive, Verdict.BY_HAND, reason)
        return
    table.put("min_version", versions[0], origin(directive))
    if versions[-1] != "TLSv1.3":
        table.put("max_version", versions[-1])
    old = "; TLS 1.0 and 1.1 are not possible" if enabled & {"tlsv1", "tlsv1.1"} else ""
    what = f"; not understood: {', '.join(unknown)}" if unknown else ""
    report.say(directive, Verdict.SAME, f"min_version and max_version{old}{what}")


def put_ciphers(table: Table, directives: list[Directive], report: Report) -> None:
    """`ciphers_tls12` and `ciphersuites_tls13`, if the list names single good ones."""
    for directive in directives:
        words = [each for each in directive.args if each]
        is_13 = len(words) > 1 and words[0].lower() == "tlsv1.3"
        text = words[-1] if words else ""
        names = [each for each in re.split(r"[:, ]+", text) if each and each[0] not in "!-+@"]
        known = [each for each in names if each in (_TLS13 if is_13 else _TLS12)]
        key = "ciphersuites_tls13" if is_13 else "ciphers_tls12"
        barred = table.values.get("max_version" if is_13 else "min_version")
        if not known or barred == ("TLSv1.2" if is_13 else "TLSv1.3"):
            reason = f"{key} stays relay's default, which is stronger than this list"
            report.say(directive, Verdict.BETTER, reason)
            continue
        table.put(key, ":".join(known), origin(directive))
        left_out = len(names) - len(known)
        more = f"; {left_out} others of the list are older and were left out" if left_out else ""
        report.say(directive, Verdict.BETTER, f"{key}{more}")


def put_groups(table: Table, directives: list[Directive], report: Report) -> None:
    """`groups`, from SSLOpenSSLConfCmd."""
    for directive in directives:
        if directive.value.lower() not in {"curves", "groups", "ecdhparameters"}:
            reason = "set it in a configuration that OPENSSL_CONF names, if relay has no key for it"
            report.say(directive, Verdict.BY_HAND, reason)
            continue
        names = re.split(r"[:, ]+", directive.arg(1))
        known = [_GROUPS[each.lower()] for each in names if each.lower() in _GROUPS]
        if known:
            table.put("groups", ":".join(dict.fromkeys(known)), origin(directive))
            report.say(directive, Verdict.SAME, "groups")
        else:
            report.say(directive, Verdict.BY_HAND, "no group of it is known; see groups")


def put_depth(table: Table, scope: Scope, name: str, report: Report) -> None:
    """`max_chain_depth`. httpd's default is 1."""
    directive = scope.last(name)
    if directive is None:
        table.put("max_chain_depth", 1, "httpd's default; 2 if an intermediate CA is sent")
        return
    number = int(directive.value) if re.fullmatch("[0-9]{1,4}", directive.value) else 1
    if number < 1:
        reason = "0 (self-signed only) is not possible; max_chain_depth = 1, and see partial_chain"
        report.say(directive, Verdict.BY_HAND, reason)
    elif number > MAX_CAS:
        report.say(directive, Verdict.SAME, f"max_chain_depth is {MAX_CAS}, the most in relay")
    else:
        report.say(directive, Verdict.SAME, "max_chain_depth")
    table.put("max_chain_depth", min(max(number, 1), MAX_CAS), origin(directive))


def put_cipher_lists(table: Table, tls12: str, tls13: str) -> None:
    """The good ones of single ciphers; otherwise relay's default stays."""
    for key, text, known, barred in (
        ("ciphers_tls12", tls12, _TLS12, table.values.get("min_version") == "TLSv1.3"),
        ("ciphersuites_tls13", tls13, _TLS13, table.values.get("max_version") == "TLSv1.2"),
    ):
        names = [each for each in text.split(":") if each in known]
        if names and not barred:
            table.put(key, ":".join(names))
