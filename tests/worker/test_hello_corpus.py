"""5,121 first flights through the routes of a real worker: none goes the wrong way."""

from __future__ import annotations

import json
import selectors
import socket
import threading
from collections import Counter

from tests.support.corpus import REFUSED, ROUTES, SIZE, corpus
from tests.support.peer import PATIENCE_S
from tests.support.plain import LISTENER, end_of
from tests.support.worker import RunningWorker, wait_until

AT_ONCE = 64


class Sinks:
    """One backend per pool. Each reads to the end, keeps what came, and closes."""

    def __init__(self) -> None:
        self.got: list[tuple[str, bytes]] = []
        self.addresses: dict[str, str] = {}
        self._selector = selectors.DefaultSelector()
        for pool in ROUTES:
            listener = socket.create_server(("127.0.0.1", 0), backlog=512)
            self.addresses[pool] = f"127.0.0.1:{listener.getsockname()[1]}"
            self._selector.register(listener, selectors.EVENT_READ, (pool, None))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            for key, _ in self._selector.select(0.1):
                pool, data = key.data
                if data is None:
                    sock, _ = key.fileobj.accept()
                    self._selector.register(sock, selectors.EVENT_READ, (pool, bytearray()))
                elif piece := key.fileobj.recv(1 << 17):
                    data += piece
                else:
                    self.got.append((pool, bytes(data)))
                    self._selector.unregister(key.fileobj)
                    key.fileobj.close()

    def close(self) -> None:
        """End, and close all sockets."""
        self._ended.set()
        self._thread.join(PATIENCE_S)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()


def test_no_hello_goes_the_wrong_way_and_none_hangs(tmp_path, stack):
    """Each ends at the backend of its name with every byte, or with a reason."""
    sinks = Sinks()
    stack.callback(sinks.close)
    routes = "".join(
        f'[[listener.route]]\nsni = {json.dumps(sni)}\nmode = "passthrough"\npool = "{pool}"\n'
        for pool, sni in ROUTES.items()
    )
    pools = "".join(
        f'[pool.{pool}]\n[[pool.{pool}.backend]]\nroute = "b"\naddress = "{address}"\n'
        for pool, address in sinks.addresses.items()
    )
    relay = RunningWorker(tmp_path, f"[timeouts]\nhello_s = 60\n{LISTENER}{routes}{pools}")
    stack.callback(relay.close)
    streams = corpus()
    assert len(streams) == SIZE
    for at in range(0, SIZE, AT_ONCE):
        send(relay.port, streams[at : at + AT_ONCE])
    expected = Counter(
        (stream.pool, b"".join(stream.parts)) for stream in streams if stream.pool != REFUSED
    )
    wait_until(lambda: len(sinks.got) >= expected.total(), "every hello to arrive")
    assert Counter(sinks.got) == expected
    wait_until(lambda: len(relay.records()) == SIZE, "every access-log line")
    refused = [record for record in relay.records() if record["reason"] != "finished"]
    assert len(refused) == SIZE - expected.total()
    assert {record["backend"] for record in refused} == {""}
    with_ech = sum(b"\xfe\x0d" in b"".join(stream.parts) for stream in streams)
    assert 0 < sum(record["ech"] for record in relay.records()) <= with_ech


def send(port, streams):
    """All at once: the first part of each, then the second of each, and so on."""
    socks = [socket.create_connection(("127.0.0.1", port), PATIENCE_S) for _ in streams]
    for turn in range(max(len(stream.parts) for stream in streams)):
        for sock, stream in zip(socks, streams, strict=True):
            if turn < len(stream.parts):
                try:
                    sock.sendall(stream.parts[turn])
                except (BrokenPipeError, ConnectionResetError):
                    assert stream.pool == REFUSED, stream.what
    for sock, stream in zip(socks, streams, strict=True):
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            assert stream.pool == REFUSED, stream.what
    for sock, stream in zip(socks, streams, strict=True):
        data, how = end_of(sock)
        assert stream.pool == REFUSED or (data, how) == (b"", "fin"), stream.what
        sock.close()
