"""Computes when a chain, or a file of CAs, is valid.

Never: looks at anything but dates and issuers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from relay.credentials import shown
from relay.tls.certificates.certificate import Certificate, subject_of
from relay.tls.certificates.openssl import Issuers
from relay.tls.certificates.pem import KeyPair
from relay.tls.certificates.validity_periods import ValidityPeriod


def period_of_pair(where: str, pair: KeyPair) -> ValidityPeriod:
    """When every certificate that is sent is valid.

    A root is not sent, so it does not count.
    """
    sent = [pair.leaf, *(each for each in pair.chain[1:] if each.issuer != each.subject)]
    last = max(sent, key=_begin)
    first = min(sent, key=_end)
    return ValidityPeriod(
        where, _begin(last), _end(first), _named(pair.file, last), _named(pair.file, first)
    )


def period_of_cas(
    where: str, file: Path, usable: Iterable[Certificate], now: datetime, *, partial: bool = False
) -> ValidityPeriod:
    """When at least one CA of a file is valid together with its issuers.

    It is the period that contains `now`. If no CA is valid now, it is the next period,
    or the last one if none follows.
    """
    windows = list(windows_of(usable, partial=partial).values())
    if not windows:
        return ValidityPeriod(where)
    open_at = [each for each in windows if each.from_at <= each.until_at]
    together = _around(open_at or [max(windows, key=lambda one: one.until_at)], now.timestamp())
    first = min(together, key=lambda one: one.from_at)
    last = max(together, key=lambda one: one.until_at)
    begins, ends = _named(shown(file), first.first), _named(shown(file), last.last)
    if len(windows) > 1:
        begins = f"every CA in {shown(file)} (the next to become valid: {subject_of(first.first)})"
        ends = f"every CA in {shown(file)} (the last: {subject_of(last.last)})"
    return ValidityPeriod(where, first.from_at, last.until_at, begins, ends)


class Window(NamedTuple):
    """When a CA and the CAs above it are valid; `first` and `last` set these limits."""

    from_at: float
    until_at: float
    first: Certificate
    last: Certificate


def windows_of(cas: Iterable[Certificate], *, partial: bool = False) -> dict[Certificate, Window]:
    """The window of each CA of a file.

    An intermediate is useless without its issuer, unless chains may be `partial`.
    """
    found = {each: Window(_begin(each), _end(each), each, each) for each in cas}
    if partial:
        return found
    issuers = Issuers(found)
    above = {each: _above(each, issuers) for each in found}
    stale = deque(each for each in found if above[each])
    below: dict[Certificate, list[Certificate]] = {}
    for each, several in above.items():
        for one in several:
            below.setdefault(one, []).append(each)
    # Windows only get narrower, so this ends. When a window changes, the CAs below it
    # are visited again.
    while stale:
        each = stale.popleft()
        narrower = _narrowed(found[each], [found[one] for one in above[each]])
        if narrower != found[each]:
            found[each] = narrower
            stale += below.get(each, ())
    return found


def is_valid(window: Window, now: datetime) -> bool:
    """Whether now is inside the window."""
    return window.from_at <= now.timestamp() <= window.until_at


def _above(certificate: Certificate, issuers: Issuers) -> list[Certificate]:
    if certificate.issuer == certificate.subject:
        return []
    return issuers.of(certificate)


def _narrowed(own: Window, above: Sequence[Window]) -> Window:
    begins = min(above, key=lambda one: one.from_at)
    ends = max(above, key=lambda one: one.until_at)
    from_at, first = max((own.from_at, own.first), (begins.from_at, begins.first), key=_at)
    until_at, last = min((own.until_at, own.last), (ends.until_at, ends.last), key=_at)
    return Window(from_at, until_at, first, last)


def _at(edge: tuple[float, Certificate]) -> float:
    return edge[0]


def _around(windows: Iterable[Window], now_at: float) -> list[Window]:
    """The overlapping windows around now; if there are none, the next or last group."""
    together: list[Window] = []
    until_at = float("-inf")
    for each in sorted(windows, key=lambda one: one.from_at):
        if together and each.from_at > until_at:
            if until_at >= now_at:
                break
            together = []
        until_at = max(until_at, each.until_at)
        together.append(each)
    return together


def _begin(certificate: Certificate) -> float:
    return certificate.not_valid_before_utc.timestamp()


def _end(certificate: Certificate) -> float:
    return certificate.not_valid_after_utc.timestamp()


def _named(file: str, certificate: Certificate) -> str:
    return f"{file} ({subject_of(certificate)})"
