"""URLs of lists and intermediates that the checker has learned from certificates.

They are kept in a file, for the next start and for the preparer, which verifies them
again. The file also has the digest of each learned list, so that it changes whenever
one of them does: the supervisor watches this file alone.

Never: keeps a URL on a host that is not in `crl.hosts`, or an intermediate that is not
below a configured CA.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from relay.checker.own_directory import read_in, replace_in
from relay.config.crl_url import parse_crl_url
from relay.config.section import Crl
from relay.files import read_regular
from relay.shared.backends_view import HEALTH_FILE
from relay.shared.list_reports import ListReport, parse_report
from relay.tls.certificates.certificate import Certificate
from relay.tls.revocation.fetched import learned_issuers

FILE = "learned.json"
MOST = 256
_MOST_FILE_BYTES = 8 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LearningSet:
    """A trust set with `from_certificates`: its CAs, and the hosts of its lists."""

    hosts: frozenset[str]
    cas: Sequence[Certificate]


def learned_file(state_dir: Path) -> Path:
    """Where the file is, if there is one."""
    return (state_dir / HEALTH_FILE).with_name(FILE)


def read_learned(state_dir: Path) -> ListReport:
    """What was learned, for the preparer. Nothing of it is verified."""
    try:
        data, _ = read_regular(learned_file(state_dir), _MOST_FILE_BYTES)
    except OSError:
        return ListReport(())
    return parse_report(data, most=MOST)


def hosts_in(crl: Crl) -> frozenset[str]:
    """The hosts that lists may be fetched from, besides those of `urls`."""
    return frozenset(host.strip("[]") for host in crl.hosts)


def is_on(url: str, hosts: Iterable[str]) -> bool:
    """Whether this is a URL that may be fetched, on one of these hosts."""
    try:
        return parse_crl_url(url).host in hosts
    except ValueError:
        return False


class Learned:
    """What a checker knows, and its file."""

    def __init__(self, directory_fd: int, sets: Sequence[LearningSet]) -> None:
        self._fd = directory_fd
        self._sets = sets
        self._digests: dict[str, str] = {}  # by URL
        self._issuers: dict[bytes, None] = {}
        self._failed = False
        if sets:
            try:
                data = read_in(directory_fd, FILE, _MOST_FILE_BYTES)
            except OSError:
                return
            self._take(parse_report(data, most=MOST))

    @property
    def urls(self) -> tuple[str, ...]:
        """The URLs, the oldest first."""
        return tuple(self._digests)

    @property
    def issuers(self) -> tuple[bytes, ...]:
        """The intermediates (DER), the oldest first."""
        return tuple(self._issuers)

    def use(self, sets: Sequence[LearningSet]) -> None:
        """The CAs have changed."""
        self._sets = sets

    def take(self, report: ListReport) -> bool:
        """Learn from a report. True if there was something new."""
        if not self._take(report):
            return False
        self._store()
        return True

    def _take(self, report: ListReport) -> bool:
        before = len(self._digests), len(self._issuers), *self._digests, *self._issuers
        for url in report.urls:
            if any(is_on(url, each.hosts) for each in self._sets):
                self._digests.setdefault(url, "")
        fresh = [each for each in report.issuers if each not in self._issuers]
        for each in self._sets if fresh else ():
            for issuer in learned_issuers(each.cas, (*self._issuers, *fresh)):
                self._issuers.setdefault(issuer.der)
        while len(self._digests) > MOST:
            del self._digests[next(iter(self._digests))]
        while len(self._issuers) > MOST:
            del self._issuers[next(iter(self._issuers))]
        return before != (len(self._digests), len(self._issuers), *self._digests, *self._issuers)

    def fetched(self, url: str, digest: str) -> None:
        """A list with this digest is kept now."""
        if self._digests.get(url, digest) != digest:
            self._digests[url] = digest
            self._store()

    def _store(self) -> None:
        values = {
            "urls": self.urls,
            "issuers": [base64.b64encode(each).decode() for each in self._issuers],
            "lists": list(self._digests.values()),
        }
        try:
            replace_in(self._fd, FILE, json.dumps(values).encode())
        except OSError as error:
            if not self._failed:
                log.error(
                    "%s cannot be written to relay.state_dir: %s; lists from certificates are not"
                    " used until it can be; check the disk",
                    FILE,
                    error.strerror or error,
                )
            self._failed = True
        else:
            self._failed = False
