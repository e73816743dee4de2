"""A real worker in a forked process, with access to its scoreboard and its logs."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import pickle
import resource
import signal
import socket
import ssl
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from relay import files as relay_files
from relay.config.load import load_config
from relay.shared.cell_layout import counter_offset
from relay.shared.entities import Series, entities_of
from relay.shared.list_reports import ReportChannel
from relay.shared.scoreboard import HEARTBEAT_MS, PHASE, PHASE_DRAINING, PHASE_SERVING, UPDATE
from relay.shared.sealed_memory import SealedFile
from relay.shared.snapshot import Snapshot
from relay.shared.update_channel import UpdateSender
from relay.supervisor.peer_users import find_peer_users
from relay.tcp_options import set_on_listener, tcp_options
from relay.tls.context_inputs import ContextInputs
from relay.tls.contexts import build_generation
from relay.tls.renewal import Renewal
from relay.tls.revocation.lint_lists import lint_lists
from relay.tls.revocation.revoked_set import RevokedSet
from relay.worker.main import WorkerSpec, run_worker
from tests.support.pki import BACKEND_NAME, Files, Pki
from tests.support.scoreboard import open_scoreboards

PATIENCE_S = 15
_TAKEN_BYTES = 16_384


def wait_until(condition: Any, what: str, patience_s: float = PATIENCE_S) -> Any:
    """Poll until the condition is true; its value."""
    deadline = time.monotonic() + patience_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience_s} s in vain for: {what}")
        time.sleep(0.005)


def route_toml(pki: Pki, pool: str = "main", sni: str = "[]", extra: str = "") -> str:
    """One [[listener.route]]."""
    return (
        f'[[listener.route]]\nsni = {sni}\npool = "{pool}"\n'
        f'certificate = "{pki.gateway.certificate}"\n'
        f'private_key = "{pki.gateway.key}"\nclient_ca = "{pki.ca}"\n{extra}\n'
    )


def pool_toml(
    pki: Pki,
    addresses: list[str],
    name: str = "main",
    extra: str = "",
    backend_name: str = BACKEND_NAME,
) -> str:
    """One [pool.NAME] with its backends, called b1, b2, …"""
    backends = "".join(
        f'[[pool.{name}.backend]]\nroute = "b{i}"\naddress = "{address}"\nname = "{backend_name}"\n'
        for i, address in enumerate(addresses, 1)
    )
    return (
        f'[pool.{name}]\nmachine_certificate = "{pki.machine.certificate}"\n'
        f'machine_key = "{pki.machine.key}"\nbackend_ca = "{pki.ca}"\n{extra}\n{backends}'
    )


def _take_files(spare: int) -> None:
    """Use every file descriptor but `spare`."""
    taken = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.dup(0))
    for fd in taken[-spare:]:
        os.close(fd)


_taken: list[bytearray] = []


def _take_memory(spare: int) -> None:
    """Forbid to map more memory, and use all that is mapped but `spare` bytes."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped, mapped))
    with contextlib.suppress(MemoryError):
        while True:
            _taken.append(bytearray(_TAKEN_BYTES))
    del _taken[-max(1, spare // _TAKEN_BYTES) :]


def _close_others(keep: set[int]) -> None:
    """Close the files that the test run had open when it forked.

    They would count as the worker's.
    """
    for fd in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if fd > 2 and fd not in keep:
            with contextlib.suppress(OSError):
                os.close(fd)


class RunningWorker:
    """A worker with one listener on a loopback port.

    `files_limit` is its RLIMIT_NOFILE (0: unchanged). `files_spare` is how many of
    these descriptors stay free. `memory_spare` is how many bytes of memory it may still
    take (0: no limit). `beside` is another worker of the same relay, whose scoreboard
    it shares. `send_buffer` is the SO_SNDBUF of its clients' sockets (0: the kernel's,
    which grows to megabytes).
    """

    def __init__(
        self,
        directory: Path,
        toml: str,
        *,
        files_limit: int = 0,
        files_spare: int = 0,
        memory_spare: int = 0,
        beside: RunningWorker | None = None,
        send_buffer: int = 0,
    ) -> None:
        self.access_log = directory / ("access.log" if beside is None else "access-2.log")
        self.messages_file = self.access_log.with_suffix(".messages")
        file = directory / "relay.toml"
        file.write_text(f'[log]\naccess = "{self.access_log}"\n{toml}')
        self.config = config = load_config(file)
        self.scoreboards = open_scoreboards() if beside is None else beside.scoreboards
        self.scoreboard = (
            self.scoreboards.begin(1, entities_of(config), 2)
            if beside is None
            else beside.scoreboard
        )
        self.layout = self.scoreboard.layout
        self.row = self.scoreboards.lease(self.scoreboard, 0)
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if send_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        first = config.listener[0]
        options = tcp_options(first.keepalive, first.user_timeout_s)
        set_on_listener(listener, options, first.name)
        self.port: int = listener.getsockname()[1]
        revoked = {name: RevokedSet(data) for name, data in self._sets().items()}
        users = find_peer_users(config)[0]
        generation = build_generation(config, 1, ContextInputs(revoked=revoked, users=users))
        read_fd, self._lifeline = os.pipe()
        garbage_fd, self._garbage_write = os.pipe()
        self._garbage_read = garbage_fd
        self.updates, self._update = UpdateSender(), 0
        self.reports = ReportChannel()
        spec = WorkerSpec(
            0,
            self.row,
            [(config.listener[0].name, listener)],
            generation,
            self.scoreboard,
            self.layout,
            read_fd,
            self.updates.child_end,
            0,
            self.reports.writer(),
            rates=self.scoreboard.client_rates(config),
        )
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            # A worker collects when it starts. It would look at all objects of the test
            # run, and so copy their memory: a second of CPU time.
            gc.freeze()
            try:
                os.close(self._lifeline)
                self.updates.close()
                signal.signal(
                    signal.SIGUSR2, lambda *_: os.write(self._garbage_write, b"%d\n" % gc.collect())
                )
                logging.basicConfig(filename=self.messages_file, level=logging.INFO, force=True)
                if memory_spare:
                    _take_memory(memory_spare)
                if files_limit:
                    _close_others(
                        {
                            read_fd,
                            self._garbage_write,
                            listener.fileno(),
                            self.updates.child_end.fileno(),
                            spec.reports.fileno(),
                            logging.root.handlers[0].stream.fileno(),
                        }
                    )
                    resource.setrlimit(resource.RLIMIT_NOFILE, (files_limit, files_limit))
                if files_spare:
                    _take_files(files_spare)
                code = run_worker(spec)
            except BaseException:  # noqa: BLE001 (a child must not go on as the test run)
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(read_fd)
        self.updates.child_end.close()
        spec.reports.close()
        listener.close()
        self.cells = self.scoreboard.row(self.row)
        wait_until(lambda: self.cells[PHASE] == PHASE_SERVING, "the worker to serve")

    def _sets(self) -> dict[str, bytes]:
        """The sets of revoked certificates that the files of lists make now."""
        return lint_lists(
            self.config, datetime.now(UTC), relay_files.Files(), lambda _set: {}, {}
        ).sets

    def renew_lists(self) -> None:
        """Send the worker what the files of revocation lists contain now."""
        sets = self._sets()
        files = [SealedFile("test-set", data) for data in sets.values()]
        indexes = {name: index for index, name in enumerate(sets)}
        self.update(Renewal({}, revoked=indexes), [file.fd for file in files])
        for file in files:
            file.close()

    def update(self, message: object, files: Sequence[int] = ()) -> None:
        """Send the worker an update, and wait until it has applied it."""
        self.send_update(message, files)
        wait_until(lambda: self.cells[UPDATE] == self._update, "the worker to apply an update")

    def send_update(self, message: object, files: Sequence[int] = ()) -> None:
        """Send the worker an update."""
        self._update += 1
        data = SealedFile("test-update", pickle.dumps(message))
        self.updates.send(self._update, data, files)
        data.close()

    def wait_until_it_drains(self) -> None:
        """Wait until the worker has stopped accepting."""
        wait_until(lambda: self.cells[PHASE] == PHASE_DRAINING, "the worker to drain")

    def garbage(self) -> int:
        """Run the worker's collector; returns how much garbage it found."""
        self.signal(signal.SIGUSR2)
        return int(os.read(self._garbage_read, 32))

    def memory(self, field: str) -> int:
        """Bytes of a field of smaps_rollup.

        "Private" is the sum of the private fields.
        """
        lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(field))

    def open_files(self) -> int:
        """How many file descriptors the worker has."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    def cpu_s(self) -> float:
        """CPU seconds the worker has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def let_it_turn(self, ticks: int = 1) -> None:
        """Wait until the worker's loop has had this many one-second ticks."""
        for _ in range(ticks):
            before = self.cells[HEARTBEAT_MS]
            wait_until(
                lambda before=before: self.cells[HEARTBEAT_MS] != before, "the worker's heartbeat"
            )

    def messages(self) -> str:
        """The worker's messages."""
        return self.messages_file.read_text()

    def records(self) -> list[dict[str, Any]]:
        """The access log so far."""
        if not self.access_log.exists():
            return []
        # The last line may be half written.
        whole, _, _ = self.access_log.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def record(self, number: int = 0) -> dict[str, Any]:
        """Line `number` of the access log; waits until it is there."""
        return wait_until(lambda: self.records()[number : number + 1], f"access log line {number}")[
            0
        ]

    def value(self, name: str, *labels: str) -> int:
        """The value of a series of this worker; without a route, of all routes."""
        values = self.snapshot().values
        exact = values.get(Series(name, labels))
        if exact is not None:
            return exact
        counter_offset(name, *labels)  # it is a series of routes, otherwise KeyError
        return sum(
            value
            for series, value in values.items()
            if series.name == name and series.labels[2:] == labels
        )

    def snapshot(self) -> Snapshot:
        """What a reader of the scoreboard reads now."""
        return self.scoreboards.snapshot()

    def signal(self, number: int) -> None:
        """Send the worker a signal."""
        os.kill(self.pid, number)

    def suspend(self) -> None:
        """SIGSTOP, and wait until it has taken effect. SIGCONT ends it."""
        self.signal(signal.SIGSTOP)
        wait_until(
            lambda: psutil.Process(self.pid).status() == psutil.STATUS_STOPPED, "the worker to stop"
        )

    def wait(self) -> int:
        """Wait until the worker has ended by itself; returns its exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        raise AssertionError("the worker does not end")

    def cut_lifeline(self) -> None:
        """Close the pipe that tells the worker that its supervisor lives."""
        os.close(self._lifeline)
        self._lifeline = -1

    def close(self) -> None:
        """End it; fails the test if it has crashed or has logged a bug."""
        code = 0
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGQUIT)
            code = self.wait()
        self.updates.close()
        self.reports.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
        os.close(self._garbage_read)
        os.close(self._garbage_write)
        assert code == 0, f"the worker ended with {code}"
        assert "bug:" not in self.messages(), self.messages()


def client_context(
    pki: Pki,
    files: Files | None,
    *,
    version: ssl.TLSVersion | None = None,
    alpn: tuple[str, ...] = (),
) -> ssl.SSLContext:
    """A stdlib client that trusts the test CA."""
    context = ssl.create_default_context(cafile=str(pki.ca))
    if files is not None:
        context.load_cert_chain(files.certificate, files.key)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def client_hello(context: ssl.SSLContext, name: str = "app.example.com") -> bytes:
    """The first flight of a client that will not send another."""
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(received, sent, server_hostname=name).do_handshake()
    return sent.read()


def connect(
    port: int,
    context: ssl.SSLContext,
    name: str = "app.example.com",
    session: ssl.SSLSession | None = None,
) -> ssl.SSLSocket:
    """A connected client; raises what the handshake raises."""
    sock = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    try:
        return context.wrap_socket(
            sock, server_hostname=name, suppress_ragged_eofs=False, session=session
        )
    except BaseException:
        sock.close()
        raise


def receive(connection: ssl.SSLSocket, size: int) -> bytes:
    """Receive exactly `size` bytes."""
    data = bytearray()
    while len(data) < size:
        chunk = connection.recv(min(65536, size - len(data)))
        if not chunk:
            raise AssertionError(f"the connection ended after {len(data)} of {size} bytes")
        data += chunk
    return bytes(data)
