"""The TLS settings of HAProxy that hold for every bind or server line.

Never: puts a default before what a line says itself.
"""

from __future__ import annotations

from relay.importer.haproxy_parser import HaproxyParser, last
from relay.importer.report import Verdict

_VALUES = frozenset(("ssl-min-ver", "ssl-max-ver", "verify", "curves"))
_FORCED = {"force-tlsv12": "TLSv1.2", "force-tlsv13": "TLSv1.3"}


def with_defaults(parser: HaproxyParser, side: str, given: dict[str, str]) -> dict[str, str]:
    """The words of a line (`side` is bind or server), after those of `global`.

    A forced version and `no-tlsv12` are words about the least and the highest version.
    """
    lines = [each for s in parser.sections if s.name == "global" for each in s.children]
    found: dict[str, str] = {}
    for suffix, word in (("options", ""), ("ciphers", "ciphers"), ("ciphersuites", "ciphersuites")):
        line = last(lines, f"ssl-default-{side}-{suffix}")
        if line is None:
            continue
        parser.report.say(line, Verdict.SAME, f"keys of each {_TABLES[side]}")
        if word:
            found[word] = line.value
            continue
        words = list(line.args)
        while words:
            name = words.pop(0)
            found[name] = words.pop(0) if name in _VALUES and words else ""
    found |= given
    if "no-tlsv12" in found:
        found["ssl-min-ver"] = "TLSv1.3"
    if "no-tlsv13" in found:
        found["ssl-max-ver"] = "TLSv1.2"
    for forced, version in _FORCED.items():
        if forced in found:
            found["ssl-min-ver"] = found["ssl-max-ver"] = version
    return found


_TABLES = {"bind": "route", "server": "pool"}
