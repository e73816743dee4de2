"""Keep-alive clients and a relay that drains: no request is lost."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import select
import socket
import ssl
import threading
import time

import pytest

from tests.support.client import context_of
from tests.support.configs import write_body
from tests.support.gateway import Gateway, wait_until
from tests.support.peer import Peer
from tests.support.tables import listener_table, pool_table, route_table

CLIENTS = 8
DRAINS = 2
GONE = (http.client.RemoteDisconnected, ConnectionError, ssl.SSLEOFError)


def serve(connection: ssl.SSLSocket) -> None:
    """Answer every request with its own path, in two pieces now and then."""
    reader = connection.makefile("rb")
    for number in itertools.count():
        line = reader.readline()
        if not line:
            return
        while reader.readline() not in {b"\r\n", b""}:
            pass
        body = line.split()[1]
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        if number % 3 == 0:
            connection.sendall(head)
            connection.sendall(body)
        else:
            connection.sendall(head + body)


class KeepAliveClient(threading.Thread):
    """Sends requests over one connection after another, until the relay is gone.

    It looks whether its connection was closed before it sends, as curl, Go, Java and
    browsers do. `unanswered` counts requests on a used connection that got no byte.
    """

    def __init__(self, number: int, port: int, context: ssl.SSLContext, pause_s: float) -> None:
        super().__init__(daemon=True)
        self.number, self.port, self.context, self.pause_s = number, port, context, pause_s
        self.answered = self.unanswered = 0
        self.failed: list[BaseException] = []
        self.stop = threading.Event()

    def run(self) -> None:
        connection, used = None, False
        for number in itertools.count():
            if self.stop.wait(self.pause_s):
                return
            if connection is not None and select.select([connection.sock], [], [], 0)[0]:
                connection.close()
                connection = None
            try:
                if connection is None:
                    connection, used = self.connect(), False
            except OSError:
                return  # the relay accepts no more
            path = f"/{self.number}/{number}"
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                assert answer.read().decode() == path
                self.answered += 1
                used = True
            except GONE as error:
                if not used:
                    self.failed.append(error)
                self.unanswered += 1
                connection = None
            except (http.client.HTTPException, OSError, AssertionError) as error:
                self.failed.append(error)
                return

    def connect(self) -> http.client.HTTPSConnection:
        made = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=20)
        raw = socket.create_connection(("127.0.0.1", self.port), 20)
        made.sock = self.context.wrap_socket(raw, server_hostname="app.example.com")
        return made


@pytest.mark.parametrize("alpn", ['["http/1.1"]', "[]"], ids=["ALPN", "no ALPN"])
def test_no_request_of_keep_alive_clients_is_lost_in_drains(pki, make_backend, alpn, stack):
    backend = make_backend(serve)
    context = context_of(pki)
    if alpn != "[]":
        context.set_alpn_protocols(["http/1.1"])
    body = listener_table(route_table(pki, alpn=[] if alpn == "[]" else ["http/1.1"]))
    body += pool_table(pki, [backend.address])
    unanswered = 0
    for _ in range(DRAINS):
        gateway = Gateway(body, relay={"drain_timeout_s": 30})
        stack.callback(gateway.close)
        gateway.start()
        clients = [
            KeepAliveClient(each, gateway.port(), context, 0.05 * (each % 3))
            for each in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        wait_until("all clients work", lambda all_=clients: all(each.answered > 3 for each in all_))
        assert gateway.command("drain").returncode == 0
        assert gateway.wait(25) == 0, "long before drain_timeout_s"
        for client in clients:
            client.stop.set()
            client.join(20)
            assert client.failed == []
            unanswered += client.unanswered
        with contextlib.suppress(AssertionError):
            gateway.wait_for_access(reason="drain_timeout", patience_s=0.1)
            pytest.fail("a session was cut")
    assert unanswered == 0


def test_a_request_on_a_unix_socket_is_answered_in_a_drain(pki, make_backend, stack, short_path):
    """A balancer's connection has no TCP options, and ends between two messages too."""
    path = short_path / "in.sock"
    answer, asked = threading.Event(), threading.Event()

    def answer_late(connection):
        while connection.recv(4096):
            asked.set()
            answer.wait(20)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    body = write_body(
        pki, make_backend(answer_late), (f"unix:{path}",), accept_proxy='{ from = ["unix"] }'
    )
    gateway = Gateway(body, relay={"drain_timeout_s": 30})
    stack.callback(gateway.close)
    gateway.start()
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.connect(str(path))
    header = b"PROXY TCP4 192.0.2.7 198.51.100.9 1 2\r\n"
    client = Peer(sock, context_of(pki), server_side=False, name="app.example.com", before=header)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert asked.wait(20)
    assert gateway.command("drain").returncode == 0
    wait_until("it drains", lambda: "draining" in gateway.log())
    time.sleep(1.5)  # a watch begins at a tick, once a second
    answer.set()
    assert client.receive(40).endswith(b"ok")
    assert gateway.wait(25) == 0, "long before drain_timeout_s"
    assert "bug" not in gateway.log()
    assert {line["reason"] for line in gateway.access()} == {"drained"}
