"""Clients and an echo backend that check every byte, for `bench.endurance`.

`python -m bench.endurance_load` reads a `LoadJob` as JSON from stdin, prints a `ready`
line and waits for another line. It then runs until its time is over or one more line
comes, and prints what happened. It blocks in threads, because a blocking client is the
shortest to trust.

Never: outlives its time by more than PATIENCE_S; counts a client as served whose bytes
were not compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.pki import GATEWAY_NAME

PATIENCE_S = 30.0
RECORD_BYTES = 4096
CLIENT = "127.0.0.1"  # the address that all clients have
_THREADS = 16
_RESET = b"\1\0\0\0\0\0\0\0"  # SO_LINGER: no TIME_WAIT


@dataclass(frozen=True, slots=True)
class LoadJob:
    """`rate` new clients a second, of which a share resumes; `transfers` long ones.

    A transfer sends a record every `pause_s` and compares what comes back. It lasts
    `transfer_s`, and then another one follows; 0: until the end.
    """

    port: int
    pki: str
    rate: float
    transfers: int
    seconds: float
    resumed_share: float = 0.75
    pause_s: float = 0.5
    transfer_s: float = 0


@dataclass
class Tally:
    """What happened to the clients of one kind. `failures`: Unix time, port, why.

    `unclean` clients got every byte, but no close_notify.
    """

    started: int = 0
    finished: int = 0
    handshakes: int = 0
    resumed: int = 0
    changed: int = 0
    bytes_compared: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    unclean: int = 0
    late: int = 0
    failures: list[tuple[float, int, str]] = field(default_factory=list)
    times_ms: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def fail(self, port: int, error: BaseException) -> None:
        """A client that was not served to its end."""
        why = type(error).__name__ + (f": {error}" if str(error) else "")
        with self.lock:
            self.failures.append((time.time(), port, why[:120]))

    def report(self) -> dict[str, object]:
        """As JSON types."""
        return {
            "started": self.started,
            "finished": self.finished,
            "handshakes": self.handshakes,
            "resumed": self.resumed,
            "changed": self.changed,
            "late": self.late,
            "bytes_compared": self.bytes_compared,
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "unclean": self.unclean,
            "failures": self.failures,
            "times_ms": self.times_ms,
        }


def client_context(pki: Path) -> ssl.SSLContext:
    """The context of all clients."""
    context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
    context.load_cert_chain(pki / "client.pem")
    return context


class Clients:
    """All clients of one process."""

    def __init__(self, job: LoadJob) -> None:
        self._job = job
        self._context = client_context(Path(job.pki))
        self._stop = threading.Event()
        self._next_at = 0.0
        self._lock = threading.Lock()
        self.short, self.long = Tally(), Tally()

    def run(self) -> None:
        """Run until the time is over or a line comes on stdin."""
        self._next_at = time.monotonic()
        until_at = self._next_at + self._job.seconds
        works: list[Callable[[], None]] = [self._visit] * (_THREADS if self._job.rate else 0)
        works += [self._transfer] * self._job.transfers
        threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in threads:
            thread.start()
            time.sleep(0.002)
        select.select([sys.stdin], [], [], max(0.0, until_at - time.monotonic()))
        self._stop.set()
        deadline = time.monotonic() + PATIENCE_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _connect(
        self, tally: Tally, session: ssl.SSLSession | None = None
    ) -> tuple[ssl.SSLSocket, int]:
        raw = socket.create_connection((CLIENT, self._job.port), PATIENCE_S)
        port = raw.getsockname()[1]
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            client = self._context.wrap_socket(raw, server_hostname=GATEWAY_NAME, session=session)
        except BaseException as error:
            raw.close()
            raise _FailedError(port, error) from error
        with tally.lock:
            tally.handshakes += 1
        return client, port

    # Short clients.

    def _due(self) -> bool:
        """Wait until the next short client is due. False if the time is over."""
        with self._lock:
            at = self._next_at
            now = time.monotonic()
            if now - at > 1.0:  # this machine does not keep up with the rate
                self.short.late += 1
                at = now
            self._next_at = at + 1 / self._job.rate
        return not self._stop.wait(max(0.0, at - now))

    def _visit(self) -> None:
        session: ssl.SSLSession | None = None
        tally, dice = self.short, random.Random()
        while self._due():
            offered = session if dice.random() < self._job.resumed_share else None
            began_at = time.monotonic()
            with tally.lock:
                tally.started += 1
            sent = os.urandom(dice.randrange(1, RECORD_BYTES))
            port = 0
            try:
                client, port = self._connect(tally, offered)
                with client:
                    same = _echoes(client, sent, tally)
                    session, reused = client.session, bool(client.session_reused)
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    same = _ends(client, tally) and same
            except _FailedError as error:
                session = None
                tally.fail(error.port, error.cause)
            except (OSError, EOFError) as error:
                session = None
                tally.fail(port, error)
            else:
                with tally.lock:
                    tally.finished += 1
                    tally.resumed += reused
                    tally.changed += not same
                    tally.bytes_compared += len(sent)
                    tally.times_ms.append(1000 * (time.monotonic() - began_at))

    # Long ones.

    def _transfer(self) -> None:
        tally = self.long
        while not self._stop.is_set():
            with tally.lock:
                tally.started += 1
            port = 0
            try:
                client, port = self._connect(tally)
                with client:
                    self._exchange(client)
            except _FailedError as error:
                tally.fail(error.port, error.cause)
            except (OSError, EOFError) as error:
                tally.fail(port, error)
            else:
                with tally.lock:
                    tally.finished += 1
            self._stop.wait(0.2)

    def _exchange(self, client: ssl.SSLSocket) -> None:
        tally, transfer_s = self.long, self._job.transfer_s
        # Spread, so that they do not end at once.
        over_at = time.monotonic() + transfer_s * random.uniform(0.5, 1.0)
        while not self._stop.wait(self._job.pause_s):
            if transfer_s and time.monotonic() > over_at:
                break
            sent = os.urandom(RECORD_BYTES)
            began_at = time.monotonic()
            same = _echoes(client, sent, tally)
            with tally.lock:
                tally.changed += not same
                tally.bytes_compared += RECORD_BYTES
                tally.times_ms.append(1000 * (time.monotonic() - began_at))
        if not _ends(client, tally):
            with tally.lock:
                tally.changed += 1


class _FailedError(Exception):
    """A connection failed in its handshake."""

    def __init__(self, port: int, cause: BaseException) -> None:
        self.port = port
        self.cause = cause
        super().__init__(str(cause))


def _echoes(client: ssl.SSLSocket, sent: bytes, tally: Tally) -> bool:
    """Whether exactly these bytes come back, as far as they were asked for."""
    client.sendall(sent)
    with tally.lock:
        tally.bytes_sent += len(sent)
    received = bytearray()
    try:
        while len(received) < len(sent):
            data = client.recv(len(sent) - len(received))
            if not data:
                raise EOFError("closed before the answer was complete")
            received += data
    finally:
        with tally.lock:
            tally.bytes_received += len(received)
    return received == sent


def _ends(client: ssl.SSLSocket, tally: Tally) -> bool:
    """Whether nothing more comes than the end."""
    try:
        client.unwrap()
    except OSError as error:
        if getattr(error, "reason", None) == "APPLICATION_DATA_AFTER_CLOSE_NOTIFY":
            return False
        with tally.lock:
            tally.unclean += 1
    return True


def main() -> None:
    """Run one job."""
    clients = Clients(LoadJob(**json.loads(sys.stdin.readline())))
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps({"event": "ready"}), flush=True)
        if not sys.stdin.readline():
            return
        clients.run()
        report = {
            "event": "done",
            "short": clients.short.report(),
            "long": clients.long.report(),
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
