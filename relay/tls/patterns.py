"""The patterns of `allow` and `deny`, matched against the names in a certificate.

In `allow`, a star matches only what a reader of the pattern expects: a whole label of a
host name, or a non-empty part of a path segment that every URL parser reads in the same
way. Everything else matches literally.

In `deny`, patterns are *wide*, so that no odd spelling avoids them: a star matches any
characters, and case, percent-encoding and a final dot do not matter.

Never: treats a star in the certificate's name as a pattern; takes more time than the
length of the name times the length of the pattern.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Letters, digits and hyphens (RFC 952, RFC 1123, 2.1), as for a wildcard in OpenSSL.
_LABEL = r"(?!-)[a-z0-9-]{1,63}(?<!-)"
# RFC 3986, 3.3: pchar without percent-encoding, which could hide a slash or a dot.
_SEGMENT = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@-]+")
_ENCODED = re.compile(r"%([0-9a-fA-F]{2})")
_DOTS = (".", "..")
_ANY = ("**",)


def dns_pattern(text: str, *, wide: bool = False) -> re.Pattern[str]:
    """A `san_dns` rule; a leading `*.` matches one label (RFC 6125, 6.4.3)."""
    label, end = ("[^.]*", r"\.?") if wide else (_LABEL, "")
    star = text.startswith("*.")
    pattern = (label + re.escape(text[1:]) if star else re.escape(text)) + end
    # Without ASCII the Kelvin sign would match a k.
    return re.compile(pattern, re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class UriPattern:
    """A `san_uri` rule.

    `*` matches one path segment or a part of one, `**` one or more whole segments.
    `segments` are the texts between slashes, each split at its stars.
    """

    segments: tuple[tuple[str, ...], ...]
    wide: bool = False

    @classmethod
    def parse(cls, text: str, *, wide: bool = False) -> UriPattern:
        """Parse a pattern. `config.rules.access` refuses `**` inside a segment."""
        if wide:
            text = wide_forms(text)[-1]
        parts = (_ANY if each == "**" else tuple(each.split("*")) for each in text.split("/"))
        return cls(tuple(parts), wide)

    def matches(self, uri: str) -> bool:
        """Whether the pattern matches this name."""
        if not self.wide:
            return self._matches(uri)
        return any(map(self._matches, wide_forms(uri)))

    def _matches(self, uri: str) -> bool:
        segments = uri.split("/")
        if segments[-1] == "" and self.segments[-1] == _ANY:
            # `x/**` also matches `x/`: the same path with nothing below it.
            return self._match_all(self.segments[:-1], segments[:-1])
        return self._match_all(self.segments, segments)

    def _match_all(self, patterns: tuple[tuple[str, ...], ...], segments: list[str]) -> bool:
        """Match like a shell: after a mismatch the last `**` takes one more segment."""
        at = now = 0
        retry_pattern, retry_segment = -1, 0
        while now < len(segments):
            if at < len(patterns) and patterns[at] == _ANY and self._is_plain(segments[now]):
                at, now = at + 1, now + 1
                retry_pattern, retry_segment = at, now
            elif at < len(patterns) and self._match_one(patterns[at], segments[now]):
                at, now = at + 1, now + 1
            elif retry_pattern >= 0 and self._is_plain(segments[retry_segment]):
                retry_segment += 1
                at, now = retry_pattern, retry_segment
            else:
                return False
        return at == len(patterns)

    def _match_one(self, parts: tuple[str, ...], segment: str) -> bool:
        """Match a segment without `**`. A star matches nothing only in `deny`."""
        if len(parts) == 1 or parts == _ANY:
            return parts != _ANY and segment == parts[0]
        first, *middle, last = parts
        if not (self._is_plain(segment) and segment.startswith(first) and segment.endswith(last)):
            return False
        least = 0 if self.wide else 1
        at, end = len(first) + least, len(segment) - len(last)
        for part in middle:
            found = segment.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part) + least
        return at <= end

    def _is_plain(self, segment: str) -> bool:
        """Whether a star may match this segment."""
        return self.wide or (segment not in _DOTS and _SEGMENT.fullmatch(segment) is not None)


def wide_forms(uri: str) -> tuple[str, ...]:
    """The URI in lower case: as it is, and without percent-encoding (RFC 3986, 2.1)."""
    as_is = uri.lower()
    if "%" not in uri:
        return (as_is,)
    return as_is, _ENCODED.sub(lambda match: chr(int(match[1], 16)), uri).lower()
