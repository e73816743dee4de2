"""From certificates to the time in which they are valid.

Never: judges anything but dates.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from relay.tls.certificate import Certificate
from relay.tls.material import KeyPair
from relay.tls.profile import subject_of
from relay.tls.spans import Span


def span_of_pair(where: str, pair: KeyPair) -> Span:
    """When all that is shown of a chain is valid. A root is not sent, so its dates do not count."""
    sent = [pair.leaf, *(each for each in pair.chain[1:] if each.issuer != each.subject)]
    last = max(sent, key=_begin)
    first = min(sent, key=_end)
    return Span(where, _begin(last), _end(first), _named(pair.file, last), _named(pair.file, first))


def span_of_cas(where: str, file: Path, usable: Iterable[Certificate]) -> Span:
    """When at least one CA of a file is valid."""
    cas = list(usable)
    if not cas:
        return Span(where)
    first = min(cas, key=_begin)
    last = max(cas, key=_end)
    if len(cas) == 1:
        return Span(where, _begin(first), _end(last), _named(str(file), first), _named(str(file), last))
    every = f"every CA in {file}, the last of them {subject_of(last)},"
    return Span(where, _begin(first), _end(last), f"every CA in {file}", every)


def _begin(certificate: Certificate) -> float:
    return certificate.not_valid_before_utc.timestamp()


def _end(certificate: Certificate) -> float:
    return certificate.not_valid_after_utc.timestamp()


def _named(file: str, certificate: Certificate) -> str:
    return f"{file} ({subject_of(certificate)})"
