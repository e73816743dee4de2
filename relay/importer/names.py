"""Names and addresses of virtual hosts: what httpd writes, as relay has it.

Never: resolves a name.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from relay.config.address import host_name_fault, is_ip
from relay.importer.report import Report, Verdict
from relay.importer.tree import Directive, Scope

WILDCARDS = frozenset({"*", "_default_", "0.0.0.0", "::", "[::]"})  # noqa: S104  compared only
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_.-]+")
ANY_PORT = 0


class Address(NamedTuple):
    """Where a virtual host or a Listen is. `host` is "*" for every address."""

    host: str
    port: int

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for every address of the machine."""
        return self.host == "*"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, report: Report, directive: Directive) -> Address | None:
    """`443`, `*:443`, `_default_:443`, `[::1]:443`; None if it is none of these."""
    host, colon, port = text.rpartition(":")
    if text.isdecimal():
        host, port = "*", text
    elif (text.startswith("[") and text.endswith("]")) or not colon:
        host, port = text, "*"
    bare = host.strip("[]") or "*"
    number = int(port) if port.isdecimal() and len(port) < 6 and port.isascii() else ANY_PORT
    if number > 65_535 or (number == ANY_PORT and port not in {"*", ""}):
        report.say(directive, Verdict.BY_HAND, f"{text} has no port that can be used; correct it")
        return None
    if bare in WILDCARDS:
        return Address("*", number)
    if is_ip(bare):
        return Address(bare, number)
    if bare.lower() == "localhost":
        return Address("127.0.0.1", number)
    what = f"{text} has a name in place of an IP address, and relay listens on every address"
    report.problem(directive.place, what, "write the IP address into listen")
    report.note(f"{directive.place}: {what}; write the IP address into listen")
    return Address("*", number)


def safe_name(text: str, taken: set[str] | dict[str, object]) -> str:
    """A name that relay accepts for listeners and pools, which nothing else has."""
    plain = _NOT_IN_A_NAME.sub("-", text).strip("-.")[:50] or "pool"
    name, number = plain, 2
    while name in taken:
        name, number = f"{plain}-{number}", number + 1
    return name


def server_names(scope: Scope, report: Report) -> list[str]:
    """ServerName and every ServerAlias that can be an `sni`."""
    found: dict[str, None] = {}  # in order, each once
    own = [each for each in scope.own if each.name in {"servername", "serveralias"}]
    for directive in sorted(own, key=lambda each: each.name != "servername"):
        wrong = []
        for text in directive.args if directive.name == "serveralias" else directive.args[:1]:
            name = _sni(text)
            if not name:
                wrong.append(text)
            else:
                found[name] = None
        if wrong:
            reason = f"not possible as sni: {', '.join(wrong)}; write the names that it stands for"
            report.say(directive, Verdict.BY_HAND, reason)
        elif any(each.startswith("*.") for each in directive.args):
            reason = 'in sni; "*." is exactly one label, and in httpd it may be several'
            report.say(directive, Verdict.BETTER, reason)
    return list(found)


def _sni(text: str) -> str:
    """The pattern, or "" if relay has none for it."""
    host = re.sub(r"^\w+://", "", text.strip().lower())
    host = re.sub(r":[0-9]*$", "", host).rstrip("./")
    bare = host.removeprefix("*.")
    if not bare.isascii():
        try:
            bare = bare.encode("idna").decode()
        except UnicodeError:
            return ""
    if is_ip(bare) or "*" in bare or "?" in bare or host_name_fault(bare):
        return ""
    return f"*.{bare}" if host.startswith("*.") else bare


def is_taken(name: str, patterns: set[str]) -> bool:
    """Whether routes with these patterns take all clients of this name."""
    return name in patterns or (name[:2] != "*." and f"*.{name.partition('.')[2]}" in patterns)
