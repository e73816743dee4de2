"""All that the checker does for revocation lists, in one object.

Never: makes the checker's loop wait.
Next: `relay.checker.crl_sources.sources_of`
"""

from __future__ import annotations

import random
import selectors
import socket
from collections.abc import Callable

from relay.checker.crl_cache import CrlCache
from relay.checker.crl_fetcher import CrlFetcher
from relay.checker.crl_learned import Learned
from relay.checker.crl_sources import learning_sets, sources_of
from relay.shared.entities import CRL_LAST_SUCCESS_S
from relay.shared.list_reports import ListReport, receive_report
from relay.shared.messages import FetchEntry
from relay.shared.scoreboard import Cells, Layout
from relay.tls.generation import Generation

_MOST_REPORTS = 64  # in one turn of the loop


class CrlLists:
    """The lists of a generation: fetched, and learned from workers' reports.

    `cells` is the checker's own row. `on_change`: `entries` are others now.
    """

    def __init__(
        self,
        generation: Generation,
        directory_fd: int,
        reports: socket.socket,
        layout: Layout,
        shared: Cells,
        cells: Cells,
        on_change: Callable[[], None],
    ) -> None:
        self._generation = generation
        self._reports = reports
        self._layout = layout
        self._shared = shared
        self._cells = cells
        self._on_change = on_change
        self._learned = Learned(directory_fd, learning_sets(generation))
        cache = CrlCache(directory_fd)
        sources = sources_of(generation, self._learned)
        cache.keep_only(sources)
        self._fetcher = CrlFetcher(cache, chance=random.random, on_result=self._on_result)
        self._fetcher.use(sources)

    def register(self, selector: selectors.BaseSelector) -> None:
        """Wait for fetches and for reports."""
        on_events: tuple[tuple[int, Callable[[], None]], ...] = (
            (self._fetcher.fd, self._fetcher.on_ready),
            (self._reports.fileno(), self._on_reports),
        )
        for fd, call in on_events:
            selector.register(fd, selectors.EVENT_READ, call)

    def entries(self) -> list[FetchEntry]:
        """What is known of each URL, for the health file."""
        return self._fetcher.entries()

    def tick(self) -> None:
        """Call it about once a second."""
        self._fetcher.tick()

    def fetch_now(self) -> None:
        """Ask all servers whether they have newer lists."""
        self._fetcher.fetch_now()

    def renewed(self) -> None:
        """CAs of the generation may have changed."""
        self._learned.use(learning_sets(self._generation))
        self._fetcher.use(sources_of(self._generation, self._learned))

    def _on_reports(self) -> None:
        for _ in range(_MOST_REPORTS):
            report = receive_report(self._reports)
            if report is None:
                return
            self.learn(report)

    def learn(self, report: ListReport) -> None:
        """A certificate that was verified says where lists are."""
        if self._learned.take(report):
            self._fetcher.use(sources_of(self._generation, self._learned))
            self._fetcher.tick()

    def _on_result(self, url: str, result: str, confirmed_at: float, digest: str) -> None:
        self._cells[self._layout.cell("relay_crl_fetch_total", result)] += 1
        self._on_change()
        if digest:
            self._learned.fetched(url, digest)
        if confirmed_at:
            try:
                cell = self._layout.cell(CRL_LAST_SUCCESS_S, url)
            except KeyError:
                return  # a learned URL
            self._shared[cell] = int(confirmed_at)
