"""Keeps the revocation lists of all URLs up to date.

A fetch has a thread: it downloads, verifies and keeps the list on disk, where the
supervisor notices it. The main thread plans the fetches, counts and logs their results.
A fetch that fails leaves the last good list as it is.

Never: makes the checker's loop wait.
Next: `relay.checker.crl_fetch.fetch`
"""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401  getaddrinfo needs it, and would load it too late
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from relay.checker.crl_cache import CrlCache
from relay.checker.crl_download import TOTAL_S
from relay.checker.crl_fetch import Kept, Outcome, Source, fetch
from relay.core.crl_schedule import Freshness, wait_after_failure, wait_after_success
from relay.shared.label_values import (
    CRL_CONNECT_FAILED,
    CRL_HTTP_FAILED,
    CRL_INVALID,
    CRL_NOT_KEPT,
    CRL_NOT_MODIFIED,
    CRL_OK,
    CRL_OLDER,
    CRL_REDIRECT_REFUSED,
    CRL_TIMEOUT,
    CRL_TOO_LARGE,
    CRL_TRUNCATED,
)
from relay.shared.messages import FetchEntry

# At most. Threads start on demand.
THREADS = 64
# A fetch that takes longer than this hangs in the resolver, which has no time limit. It
# counts as failed, and there is no other fetch of that URL until it has ended.
HANGS_S = TOTAL_S + 5.0
# What was fetched a moment ago is not fetched again for an operator who reloads.
MOMENT_S = 1.0
# A failure that goes on is logged again after this time.
REPEAT_S = 3600.0

_REMEDIES = {
    CRL_CONNECT_FAILED: "check the URL, and that this machine may connect there",
    CRL_TIMEOUT: "check the URL, and whether that server is overloaded",
    CRL_HTTP_FAILED: "check the URL, for example with curl -v",
    CRL_REDIRECT_REFUSED: "configure the URL that it leads to, or add its host to crl.hosts",
    CRL_TOO_LARGE: "have the CA split its list (issuing distribution points)",
    CRL_TRUNCATED: "check that server, and proxies before it",
    CRL_INVALID: "check the URL; if the CA has another key now, add its certificate to the CA file",
    CRL_OLDER: "find out why that server has an old list: a cache, a mirror, or an attacker",
    CRL_NOT_KEPT: "check relay.state_dir: its disk, and who may write there",
}

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _State:
    """A URL in the main thread. `due_at` is CLOCK_MONOTONIC, `due_wall_at` Unix time.

    Both clocks count: the first stands still while the machine sleeps, the second
    jumps.
    """

    source: Source
    kept: Kept | None = None
    due_at: float = 0.0
    due_wall_at: float = 0.0
    running_since: float | None = None
    ended_at: float = -MOMENT_S
    hangs: bool = False
    again: bool = False
    failures: int = 0
    logged: tuple[str, str] = ("", "")
    logged_at: float = 0.0
    failing_since: float | None = None  # Unix time


class CrlFetcher:
    """The fetches of a checker. `fd` is readable when `on_ready` is to be called.

    Call `tick` about once a second. `on_result` gets the URL, one of
    CRL_FETCH_RESULTS, when the server last confirmed the list that is kept, and that
    list's digest ("" for none).
    """

    def __init__(
        self,
        cache: CrlCache,
        *,
        chance: Callable[[], float],
        on_result: Callable[[str, str, float, str], None],
    ) -> None:
        self._cache = cache
        self._chance = chance
        self._on_result = on_result
        self._states: dict[str, _State] = {}
        self._wanted: queue.SimpleQueue[tuple[Source, Kept | None]] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._running = 0
        self._threads = 0
        self.fd, self._wake_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    # Main thread.

    def use(self, sources: Mapping[str, Source]) -> None:
        """Fetch these URLs from now on.

        Call it whenever the CAs or the URLs may have changed. If CAs have gone, the
        kept list is verified again. If CAs have come, what has failed is tried again.
        """
        for url in self._states.keys() - sources.keys():
            del self._states[url]
        for url, source in sources.items():
            state = self._states.setdefault(url, _State(source))
            before, state.source = state.source.trusted, source
            gone = before - source.trusted
            if gone:
                state.kept = None
            if gone or (source.trusted - before and (state.failures or state.running_since)):
                state.again = state.running_since is not None
                state.due_at = 0.0

    def tick(self) -> None:
        """Start the fetches that are due."""
        self._add_thread()
        now, wall = time.monotonic(), time.time()
        for state in self._states.values():
            since = state.running_since
            if since is None:
                if now >= state.due_at or wall >= state.due_wall_at:
                    self._begin(state, now)
            elif now - since > HANGS_S and not state.hangs:
                state.hangs = True
                why = f"it has not ended after {HANGS_S:g} s; the resolver hangs"
                self._failed(state, Outcome(state.source.url, CRL_TIMEOUT, why, state.kept))

    def fetch_now(self) -> None:
        """Fetch all lists, except those that were fetched a moment ago."""
        now = time.monotonic()
        for state in self._states.values():
            if now - state.ended_at >= MOMENT_S:
                state.due_at = 0.0
        self.tick()

    def _begin(self, state: _State, now: float) -> None:
        """Give the URL to an idle thread, or to a new one."""
        state.running_since, state.hangs, state.again = now, False, False
        self._wanted.put((state.source, state.kept))
        self._running += 1
        self._add_thread()

    def _add_thread(self) -> None:
        """Start a thread if URLs wait for one."""
        if self._threads < min(self._running, THREADS):
            # If this user may not have more threads now, the next `tick` tries again.
            with contextlib.suppress(RuntimeError):
                name = f"crl {self._threads}"
                threading.Thread(target=self._work, name=name, daemon=True).start()
                self._threads += 1

    def on_ready(self) -> None:
        """Process the outcomes that have arrived."""
        try:
            os.read(self.fd, 4096)
        except BlockingIOError:
            return
        while not self._outcomes.empty():
            outcome = self._outcomes.get()
            self._running -= 1
            state = self._states.get(outcome.url)
            if state is None:
                continue  # no longer configured
            hung, state.running_since = state.hangs, None
            state.ended_at = time.monotonic()
            # If CAs have gone meanwhile, the list has to be verified again.
            state.kept = None if state.again else outcome.kept
            if outcome.result in {CRL_OK, CRL_NOT_MODIFIED}:
                self._succeeded(state, outcome)
            elif not hung:
                self._failed(state, outcome)
            if state.again:
                state.due_at = 0.0

    def _succeeded(self, state: _State, outcome: Outcome) -> None:
        kept = outcome.kept
        assert kept is not None  # noqa: S101  for mypy
        if outcome.is_new:
            log.info("%s: fetched %s", outcome.url, kept)
        elif state.failures:
            # It may not have counted before: the clock was behind.
            with contextlib.suppress(OSError):
                self._cache.touch(outcome.url)
            log.info("%s: can be fetched again; it still has %s", outcome.url, kept)
        state.failures, state.logged, state.failing_since = 0, ("", ""), None
        fresh = Freshness(kept.next_update, kept.next_publish, outcome.max_age_s)
        wall = time.time()
        self._plan(state, wait_after_success(wall, fresh, self._chance()))
        self._on_result(outcome.url, outcome.result, kept.note.fetched_at, kept.digest)

    def _failed(self, state: _State, outcome: Outcome) -> None:
        state.failures += 1
        kept, now, wall = outcome.kept, time.monotonic(), time.time()
        state.failing_since = state.failing_since or round(wall, 3)
        what = (outcome.result, outcome.why)
        if what != state.logged or now >= state.logged_at + REPEAT_S:
            state.logged, state.logged_at = what, now
            log.error(
                "%s: the revocation list cannot be fetched: %s; %s; %s",
                outcome.url,
                outcome.why,
                _what_is_kept(kept, wall),
                _REMEDIES[outcome.result],
            )
        until = kept.next_update if kept is not None else None
        self._plan(state, wait_after_failure(wall, state.failures, until, self._chance()))
        at, digest = (kept.note.fetched_at, kept.digest) if kept is not None else (0.0, "")
        self._on_result(outcome.url, outcome.result, at, digest)

    def _plan(self, state: _State, wait_s: float) -> None:
        state.due_at, state.due_wall_at = time.monotonic() + wait_s, time.time() + wait_s

    def entries(self) -> list[FetchEntry]:
        """What is known of each URL, for the health file."""
        return [
            {
                "url": url,
                "error": state.logged[1],
                "failing_since": state.failing_since,
                "confirmed_at": state.kept.note.fetched_at if state.kept is not None else None,
            }
            for url, state in self._states.items()
        ]

    # Threads.

    def _work(self) -> None:
        """The main function of a thread, which never ends."""
        while True:
            source, kept = self._wanted.get()
            self._outcomes.put(fetch(self._cache, source, kept))
            try:
                os.write(self._wake_fd, b"\0")
            except BlockingIOError:
                continue  # the pipe is full, so the main thread will wake


def _what_is_kept(kept: Kept | None, wall: float) -> str:
    if kept is None:
        return "there is no list of it yet"
    until = kept.next_update
    ended = ", which has ended," if until is not None and until <= wall else ""
    return f"the last good one is kept: {kept}{ended}"
