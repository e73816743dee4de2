"""Applies what the supervisor sends while the worker runs, a little in each turn.

The supervisor reads the number of the last applied update in the worker's row. If an
update cannot be applied, the worker drains: its successor inherits the new state.

Never: reads a file from a disk; holds up sessions for longer than a handshake does.
Next: `relay.tls.renewal.renew_steps`
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from relay.core.kicks import kept_out
from relay.errors import ConfigError, describe_error
from relay.shared.scoreboard import UPDATE
from relay.shared.update_channel import Update, UpdateReceiver
from relay.tls.generation import Generation
from relay.tls.renewal import Renewal, map_sets, renew_steps
from relay.tls.trust_update import TrustUpdate, apply_trust
from relay.worker.accepting import Accepting, AcceptUpdate, apply_accept_update
from relay.worker.drain import DrainUpdate
from relay.worker.examples import Examples, TellUpdate
from relay.worker.judgement import Closing, Judgement
from relay.worker.kicked import KickUpdate, sessions_of
from relay.worker.loop import IN
from relay.worker.session import UPDATE_QUEUE
from relay.worker.worker import Worker

log = logging.getLogger(__name__)


class Updates:
    """The worker's end of its channel.

    `close` gets the sessions that end because of an update. `fail` is called if an
    update cannot be applied.
    """

    def __init__(
        self,
        worker: Worker,
        generation: Generation,
        receiver: UpdateReceiver,
        close: Callable[[Iterable[Closing]], None],
        fail: Callable[[str], None],
        acceptors: Sequence[Accepting] = (),
    ) -> None:
        self._worker = worker
        self._generation = generation
        self._receiver = receiver
        self._close = close
        self._fail = fail
        self._acceptors = acceptors
        self._judgement = Judgement(worker, generation, close)
        self._waiting: deque[Update] = deque()
        self._number = 0  # of the update that is being applied
        self._failed = False  # the supervisor does not read about later ones
        self._steps: Iterator[None] | None = None
        worker.loop.add(receiver.fd, IN, self.on_ready)

    def on_ready(self, mask: int) -> None:  # noqa: ARG002 (a socket)
        """Updates have come."""
        try:
            self._waiting += self._receiver.receive()
        except OSError as error:
            self._give_up(describe_error(error))
            return
        if self._receiver.ended:
            self._worker.loop.forget(self._receiver.fd, self._receiver.close)
        self._begin()

    def _begin(self) -> None:
        if self._steps is None and self._waiting:
            update = self._waiting.popleft()
            self._number, self._steps = update.number, self._apply(update)
            self._worker.loop.later(self, UPDATE_QUEUE)

    def step(self) -> None:
        """Do a few milliseconds of the work, when the loop has time."""
        if self._steps is None:
            return
        try:
            next(self._steps)
        except StopIteration:
            if not self._failed:
                self._worker.cells[UPDATE] = self._number
            self._steps = None
            self._begin()
        except (ConfigError, MemoryError, OSError) as error:
            self._give_up(describe_error(error))
        else:
            self._worker.loop.later(self, UPDATE_QUEUE)

    def on_bug(self) -> None:
        """A step raised."""
        self._give_up("a bug; its traceback is above")

    def _give_up(self, why: str) -> None:
        self._steps, self._failed = None, True
        log.error("certificates cannot be renewed in this worker: %s; it drains", why)
        self._judgement.again()  # a part of it may have been applied
        self._fail("it could not apply an update")
        self._begin()

    def _apply(self, update: Update) -> Iterator[None]:
        message = pickle.loads(update.data)  # noqa: S301 (from the supervisor)
        try:
            match message:
                case Renewal():
                    sets = map_sets(message, update.files)
                    yield from renew_steps(self._generation, message, sets)
                    self._forget_sessions(message)
                    self._judgement.again()
                case TrustUpdate():
                    apply_trust(self._generation, message, update.files)
                    self._judgement.again()
                case KickUpdate():
                    self._kick(message)
                case DrainUpdate():
                    self._worker.scoreboard.limit_drain(
                        replaced_until_at=message.replaced_until_at,
                        stop_until_at=message.stop_until_at,
                    )
                case AcceptUpdate():
                    apply_accept_update(self._acceptors, message)
                case TellUpdate():
                    self._tell(update.files)
                case _:
                    raise TypeError(f"an unknown update: {type(message).__name__}")
        finally:
            for fd in update.files:
                os.close(fd)

    def _tell(self, files: Sequence[int]) -> None:
        worker = self._worker
        if worker.examples is not None:
            worker.examples.close()
        worker.examples = Examples(socket.socket(fileno=os.dup(files[0]))) if files else None

    def _kick(self, update: KickUpdate) -> None:
        worker = self._worker
        worker.kicks = kept_out(update.kept_out, worker.loop.now)
        if update.end is not None:
            closings = sessions_of(update.end, worker.sessions)
            worker.cells[worker.counters.kicked] += len(closings)
            self._close(closings)

    def _forget_sessions(self, renewal: Renewal) -> None:
        """Resume no TLS session with a backend from before the renewal.

        OpenSSL verifies no certificate in a resumption.
        """
        for name, pool in self._generation.config.pool.items():
            if renewal.concerns_pool(pool):
                for backend in self._worker.pools[name].backends:
                    backend.drop_all_sessions()
