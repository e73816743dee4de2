"""The files of revocation lists among those that are renewed in place.

The lists of a trust set and its CA file are one set of files: when one of them changes,
the revoked certificates are worked out anew.

Never: opens a list.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from relay.checker.crl_cache import cached_list
from relay.checker.crl_learned import hosts_in, is_on, learned_file, read_learned
from relay.config.model import Config
from relay.errors import StartupError
from relay.tls.certificates.file_sets import FileSet, SetKey, file_sets
from relay.tls.revocation.crl import MAX_LIST_BYTES
from relay.tls.revocation.fetched import FetchedLists
from relay.tls.revocation.revoked_set import RevokedSet, shared_set
from relay.tls.revocation.trust_sets import TrustSet, trust_sets_of

# How often the fetched lists are looked at when relay.watch_s is 0.
FETCHED_WATCH_S = 2.0


@dataclass(frozen=True, slots=True)
class Watched:
    """The sets of files to watch, and how often; 0 is never."""

    sets: tuple[FileSet, ...]
    every_s: float


def all_sets(config: Config) -> tuple[FileSet, ...]:
    """Every set of files of a configuration, each once."""
    wheres: dict[SetKey, list[str]] = {}
    for key, several in trust_sets_by_key(config).items():
        wheres[key] = [use.where for each in several for use in each.uses]
    lists = (FileSet(*key, tuple(each), MAX_LIST_BYTES) for key, each in wheres.items())
    return (*file_sets(config), *lists)


def watched(config: Config) -> Watched:
    """What to watch. Fetched lists are not the operator's files: they always count."""
    every = all_sets(config)
    if config.relay.watch_s:
        return Watched(every, config.relay.watch_s)
    fetched = {
        key
        for key, several in trust_sets_by_key(config).items()
        if any(each.is_fetched for each in several)
    }
    return Watched(
        tuple(each for each in every if each.key in fetched), FETCHED_WATCH_S if fetched else 0.0
    )


def trust_sets_by_key(config: Config) -> dict[SetKey, list[TrustSet]]:
    """The trust sets by the key of their set of files."""
    found: dict[SetKey, list[TrustSet]] = {}
    for each in trust_sets_of(config).values():
        files = (each.cas, *each.files, *_fetched_files(config, each))
        found.setdefault(("crl", tuple(dict.fromkeys(files))), []).append(each)
    return found


def _fetched_files(config: Config, trust_set: TrustSet) -> Iterable[Path]:
    state_dir = config.relay.state_dir
    yield from (cached_list(state_dir, url) for url in trust_set.urls)
    if trust_set.from_certificates:
        yield learned_file(state_dir)  # it changes with each list that it names


def name_of(config: Config, file: Path) -> str:
    """A renewed file for operators: a fetched list is known by its URL."""
    if file == learned_file(config.relay.state_dir):
        return "lists that certificates name"
    for each in trust_sets_of(config).values():
        for url in each.urls:
            if file == cached_list(config.relay.state_dir, url):
                return url
    return str(file)


def fetched_lists(config: Config, trust_set: TrustSet) -> FetchedLists:
    """What the checker has fetched for a trust set, where it keeps it."""
    state_dir = config.relay.state_dir
    files = {cached_list(state_dir, url): url for url in trust_set.urls}
    if not trust_set.from_certificates:
        return FetchedLists(files)
    found, hosts = read_learned(state_dir), hosts_in(trust_set.uses[0].crl)
    learned = {cached_list(state_dir, url): url for url in found.urls if is_on(url, hosts)}
    return FetchedLists(files, learned, found.issuers)


def share_sets(buffers: Mapping[str, bytes]) -> Generator[None, None, dict[str, RevokedSet]]:
    """Put sets into memory that processes forked from this one share, one per step.

    Raises StartupError.
    """
    sets: dict[str, RevokedSet] = {}
    for name, buffer in buffers.items():
        try:
            sets[name] = shared_set(name, buffer)
        except OSError as error:
            what = f"no memory for the revoked certificates: {error.strerror or error}"
            raise StartupError(what, "give the relay more memory or open files") from None
        yield
    return sets
