"""One fetch of a revocation list, from the request until the list is on disk.

Never: runs in the checker's main thread; replaces a list by one that is older, or that
no CA here has signed.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple

from relay.checker.crl_cache import CrlCache, Note
from relay.checker.crl_download import Document, FetchError, Validators, download
from relay.shared.label_values import CRL_INVALID, CRL_NOT_KEPT, CRL_NOT_MODIFIED, CRL_OK, CRL_OLDER
from relay.tls.certificates.certificate import Name
from relay.tls.revocation.distribution_points import Scope

log = logging.getLogger(__name__)


class Kind(NamedTuple):
    """What a list is about."""

    issuer: Name
    issuer_key: bytes
    scope: Scope
    is_delta: bool

    def replaces(self, other: Kind, url: str) -> bool:
        """Whether a list of this kind may take the place of another one's at this URL.

        A CA may have a new key, one list where it had several, or a part for the URL.
        """
        fits = self.scope in {other.scope, Scope()} or (
            url in self.scope.uris and self.scope.only in {"", other.scope.only}
        )
        return self.issuer == other.issuer and fits and self.is_delta <= other.is_delta


@dataclass(frozen=True, slots=True)
class ListFacts:
    """What was read of a list whose signature is right. Times are Unix time.

    `name` is for messages. Numbers and times are comparable between lists with the same
    `kind`.
    """

    name: str
    kind: Kind
    number: int | None
    this_update: float
    next_update: float | None
    next_publish: float | None

    def __str__(self) -> str:
        until = f", next update {date_of(self.next_update)}" if self.next_update else ""
        return f"{self.name} of {date_of(self.this_update)}{until}"


Verify = Callable[[bytes], tuple[ListFacts, ...]]
"""Verifies the lists in a file, mostly one. Raises FetchError."""


@dataclass(frozen=True, slots=True)
class Source:
    """A URL: the other hosts that it may redirect to, and who verifies its list.

    `verify` is called in a thread. `trusted` are the CAs (DER) that it verifies with.
    """

    url: str
    hosts: frozenset[str]
    verify: Verify
    trusted: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class Kept:
    """The file on disk."""

    facts: tuple[ListFacts, ...]
    digest: str
    note: Note

    @property
    def next_update(self) -> float | None:
        """When the first of its lists ends."""
        return min((one.next_update for one in self.facts if one.next_update), default=None)

    @property
    def next_publish(self) -> float | None:
        """When the next list will be published, if one of them says so."""
        return min((one.next_publish for one in self.facts if one.next_publish), default=None)

    def __str__(self) -> str:
        more = f" and {len(self.facts) - 1} more" if len(self.facts) > 1 else ""
        return f"{self.facts[0]}{more}"


class Outcome(NamedTuple):
    """How a fetch has ended. `kept` is the list on disk, None if there is none."""

    url: str
    result: str
    why: str
    kept: Kept | None
    max_age_s: float | None = None
    is_new: bool = False


def fetch(cache: CrlCache, source: Source, kept: Kept | None) -> Outcome:
    """Download, verify and keep a list. `kept`: the one on disk, if it is known."""
    try:
        kept = kept or _load(cache, source)
        return _download(cache, source, kept)
    except FetchError as error:
        return Outcome(source.url, error.result, str(error), kept)
    except OSError as error:
        why = f"it cannot be kept in relay.state_dir: {error.strerror or error}"
        return Outcome(source.url, CRL_NOT_KEPT, why, kept)
    except Exception as error:
        # The end of a thread would go unnoticed.
        log.exception("bug: a fetch of %s failed; please report this", source.url)
        return Outcome(source.url, CRL_INVALID, f"a bug: {error!r}", kept)


def _load(cache: CrlCache, source: Source) -> Kept | None:
    """The list on disk, if it is good."""
    found = cache.load(source.url)
    if found is None:
        return None
    body, note = found
    try:
        return Kept(source.verify(body), _digest(body), note)
    except FetchError:
        return None  # as if there was none: the next good one replaces it


def _download(cache: CrlCache, source: Source, kept: Kept | None) -> Outcome:
    known = kept.note.validators if kept is not None and cache.has(source.url) else Validators()
    document = download(source.url, source.hosts, known if known != Validators() else None)
    note = Note(document.validators, time.time())
    if document.body is None:
        assert kept is not None  # noqa: S101  for mypy
        kept = replace(kept, note=note)
        cache.annotate(source.url, kept.digest, note)
        return Outcome(source.url, CRL_NOT_MODIFIED, "", kept, document.max_age_s)
    return _keep(cache, source, kept, document, document.body, note)


def _keep(
    cache: CrlCache, source: Source, kept: Kept | None, document: Document, body: bytes, note: Note
) -> Outcome:
    facts, digest = source.verify(body), _digest(body)
    is_new = kept is None or kept.digest != digest
    if kept is not None:
        _refuse_older(facts, kept.facts)
        _refuse_others(source.url, facts, kept.facts)
    # An unchanged list stays as it is: a new file would be read and verified again.
    if is_new or not cache.has(source.url):
        cache.store(source.url, body)
    cache.annotate(source.url, digest, note)
    return Outcome(source.url, CRL_OK, "", Kept(facts, digest, note), document.max_age_s, is_new)


def _refuse_older(facts: Iterable[ListFacts], kept: Iterable[ListFacts]) -> None:
    """Raise FetchError for a list that a server should no longer have.

    An attacker who can answer in its place could hide a revocation with it.
    """
    before = {one.kind: one for one in kept}
    for new in facts:
        known = before.get(new.kind, new)
        older_number = (
            new.number is not None and known.number is not None and new.number < known.number
        )
        if older_number or new.this_update < known.this_update:
            raise FetchError(CRL_OLDER, f"the server has an older list: {new}")


def _refuse_others(url: str, facts: Iterable[ListFacts], kept: Iterable[ListFacts]) -> None:
    """Raise FetchError for a genuine list that is about other certificates.

    An attacker who can answer in the server's place could hide all revocations with it.
    """
    now_at = time.time()
    for one in kept:
        counts = one.next_update is None or one.next_update > now_at
        if counts and not any(new.kind.replaces(one.kind, url) for new in facts):
            what = ", ".join(each.name for each in facts)
            raise FetchError(CRL_INVALID, f"the server has another list now: {what}")


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def date_of(at: float) -> str:
    """An instant for people."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
