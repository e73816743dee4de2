"""A peer's machine that does not answer any more: TCP gives it up, and the log says so.

A filter on the peer's socket drops every segment that comes, so its kernel answers
nothing: for the relay its machine is gone.
"""

import ctypes
import socket
import struct

import pytest

from tests.support.worker import wait_until

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_KEEPALIVE = "keepalive = { idle_s = 1, interval_s = 1, count = 2 }\nuser_timeout_s = 0"
_USER_TIMEOUT = "user_timeout_s = 1"


def vanish(peer):
    """Let the peer's kernel drop every segment of this connection."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF_RET: drop
    address = ctypes.addressof(program)
    try:
        peer.sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, address))
    except PermissionError:
        pytest.skip("this kernel takes filters of TCP sockets from root only")


def exchange(client, server):
    client.send(b"request")
    assert server.receive(7) == b"request"
    server.send(b"answer")
    assert client.receive(6) == b"answer"


def test_a_silent_client_is_given_up_by_keepalive(start, door, pair):
    back = door()
    relay = start([back.address], listener=_KEEPALIVE)
    client, server = pair(relay, back)
    exchange(client, server)
    vanish(client)
    assert server.end()[1] == "fin", "what was cut must not look whole"
    record = relay.record()
    assert (record["reason"], record["side"]) == ("inbound_lost", "inbound")
    assert "its machine did not answer for 3 s" in record["detail"]
    assert 2 <= record["duration_s"] < 10


def test_a_silent_backend_is_given_up_by_keepalive(start, door, pair):
    back = door()
    relay = start([back.address], pool=_KEEPALIVE)
    client, server = pair(relay, back)
    exchange(client, server)
    vanish(server)
    assert client.end()[1] == "fin"
    record = relay.record()
    assert (record["reason"], record["side"]) == ("outbound_lost", "outbound")
    assert "b1 at 127.0.0.1" in record["detail"]


@pytest.mark.parametrize("blob", [b"x", bytes(8_000_000)], ids=["a byte", "more than fits"])
def test_a_client_that_acknowledges_nothing_is_given_up(start, backend, call, blob):
    """Also while bytes for it are held, because its socket takes no more."""

    def serve(connection):
        connection.recv(1)
        connection.sendall(b"go")
        connection.recv(1)
        connection.sendall(blob)
        connection.recv(1)

    relay = start([backend(serve).address], listener=_USER_TIMEOUT)
    client = call(relay)
    client.send(b"1")
    assert client.receive(2) == b"go"
    vanish(client)
    client.send(b"2")
    record = relay.record()
    assert (record["reason"], record["side"]) == ("inbound_lost", "inbound")
    assert "did not answer" in record["detail"]
    assert record["duration_s"] < 20


def test_without_both_a_silent_peer_stays(start, door, pair):
    back = door()
    own = "keepalive = false\nuser_timeout_s = 0"
    relay = start([back.address], top="[timeouts]\nidle_s = 3", listener=own, pool=own)
    client, server = pair(relay, back)
    exchange(client, server)
    vanish(client)
    wait_until(lambda: relay.value("relay_connections_active") == 0, "idle_s")
    assert relay.record()["reason"] == "idle_timeout"
