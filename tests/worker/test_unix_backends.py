"""Backends on unix sockets: no TLS, and peer_user says who may listen there."""

import hashlib
import os
import random
import socket
import threading

import pytest

from tests.support import ready
from tests.support.peer import PATIENCE_S
from tests.support.plain import UnixDoor, end_of, hello, passthrough_toml, receive, unix_toml
from tests.support.web import request, response
from tests.support.worker import RunningWorker, wait_until

MB = 1024 * 1024


@pytest.fixture
def run(tmp_path, stack, pki):
    """A worker with a pool of these unix sockets."""

    def run(paths, **how):
        running = RunningWorker(tmp_path, unix_toml(pki, paths, **how))
        stack.callback(running.close)
        return running

    return run


@pytest.fixture
def unix_door(tmp_path, stack):
    """A backend on a unix socket."""

    def unix_door(name="app.sock", **how):
        made = UnixDoor(tmp_path / name, **how)
        stack.callback(made.close)
        return made

    return unix_door


@pytest.fixture
def site(unix_door, stack):
    """An HTTP server on a unix socket that answers with its name."""

    def site(name):
        door = unix_door(f"{name}.sock")
        stopped = threading.Event()

        def serve():
            while not stopped.is_set():
                if not ready.select([door.listener], [], 0.1)[0]:
                    continue
                sock = door.accept()
                threading.Thread(target=answer, args=(sock,), daemon=True).start()

        def answer(sock):
            while head := sock.recv(65536):
                assert head.startswith(b"GET ")
                body = name.encode()
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        stack.callback(thread.join, PATIENCE_S)
        stack.callback(stopped.set)
        return door.path

    return site


def test_bytes_go_between_tls_and_the_unix_socket(run, unix_door, call):
    door = unix_door()
    relay = run([door.path])
    client = call(relay)
    server = door.accept()
    client.send(b"the question")
    assert receive(server, 12) == b"the question"
    server.sendall(b"the answer")
    assert client.receive(10) == b"the answer"
    client.close_notify()
    assert server.recv(10) == b""
    server.sendall(b", and more")
    server.close()
    assert client.end() == (b", and more", "close_notify")
    record = relay.record()
    assert (record["reason"], record["tls_version"]) == ("finished", "TLSv1.3")
    assert (record["outbound_tls_version"], record["outbound_handshake_s"]) == ("", None)
    assert (record["bytes_in"], record["bytes_out"]) == (12, 20)
    assert relay.value("relay_handshakes_total", "outbound", "ok") == 0


def test_bulk_in_both_directions_arrives_unchanged(run, unix_door, call):
    """Back-pressure of a unix socket, whose buffer is small."""
    door = unix_door()
    relay = run([door.path])
    client, server = call(relay), door.accept()
    blob = random.Random(3).randbytes(MB)
    want = hashlib.sha256(blob * 8).digest()
    digests = []

    def echo():
        state = hashlib.sha256()
        for _ in range(8):
            data = receive(server, MB)
            state.update(data)
            server.sendall(data)
        digests.append(state.digest())

    thread = threading.Thread(target=echo, daemon=True)
    thread.start()
    back = hashlib.sha256()
    for _ in range(8):
        client.send(blob)
        back.update(client.receive(MB))
    thread.join(PATIENCE_S)
    assert [*digests, back.digest()] == [want, want]


def test_a_socket_of_another_user_is_refused(run, unix_door, call):
    """The detail names both users."""
    door = unix_door()
    relay = run([door.path], user="4242")
    assert call(relay).end()[1] in {"fin", "reset"}
    record = relay.record()
    assert (record["reason"], record["side"]) == ("backend_wrong_user", "outbound")
    assert f"user id {os.getuid()})" in record["detail"]
    assert "peer_user is 4242" in record["detail"]
    assert "socket activation" in record["remedy"]
    server = door.accept()
    assert server.recv(10) == b"", "the relay sends nothing to it"
    wait_until(lambda: "backend b1 failed" in relay.messages(), "the warning")


def test_the_listening_process_counts_not_the_owner_of_the_file(run, unix_door, call):
    """Who may write to the directory can make a socket; listening is what counts."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to listen as another user")
    door = unix_door()
    os.chown(door.path, 4242, 4242)
    relay = run([door.path], user="4242")
    call(relay).end()
    assert relay.record()["reason"] == "backend_wrong_user"


@pytest.mark.parametrize(
    ("how", "reason"), [("no socket", "backend_refused"), ("nobody listens", "backend_refused")]
)
def test_a_socket_that_nobody_serves_gives_way_to_the_next(run, unix_door, call, how, reason):
    gone, door = unix_door("gone.sock"), unix_door()
    gone.close()
    if how == "no socket":
        gone.path.unlink()
    relay = run([gone.path, door.path], pool="retry_s = 60")
    for _ in range(2):
        client = call(relay)
        server = door.accept()
        server.sendall(b"hi")
        assert client.receive(2) == b"hi"
    assert reason in relay.messages()


def test_a_full_accept_queue_is_a_failure(run, unix_door, call):
    """The relay does not wait for it, and says what it is."""
    door = unix_door(backlog=0)
    relay = run([door.path])
    for _ in range(3):
        call(relay)
    wait_until(relay.records, "the session that found no place")
    record = relay.record()
    assert record["reason"] == "backend_timeout"
    assert "accept queue is full" in record["detail"]


def test_cookies_choose_among_unix_sockets(run, site, call):
    """The relay reads the first request, and inserts its own cookie."""
    paths = [site(f"s{i}") for i in range(3)]
    secret = paths[0].parent / "secret"
    secret.write_text("0123456789abcdef0123456789abcdef\n")
    secret.chmod(0o600)
    relay = run(
        paths,
        pool='sticky = "cookie"\nsticky_fallback = "balance"\ncookie = "RELAYID"\n'
        f'cookie_insert = true\ncookie_secret_file = "{secret}"',
    )
    client = call(relay)
    client.send(request())
    head, body = response(client)
    cookie = head.partition(b"Set-Cookie: ")[2].partition(b";")[0].decode()
    assert cookie.startswith("RELAYID=")
    for _ in range(4):
        client = call(relay)
        client.send(request(cookie))
        head, again = response(client)
        assert again == body
        assert b"Set-Cookie" not in head


def test_passthrough_may_lead_to_a_unix_socket(tmp_path, stack, unix_door):
    """The program behind the socket does TLS with the client itself."""
    door = unix_door()
    toml = passthrough_toml([f"unix:{door.path}"]).replace(
        'address = "unix:', f'peer_user = "{os.getuid()}"\naddress = "unix:'
    )
    relay = RunningWorker(tmp_path, toml)
    stack.callback(relay.close)
    client = socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S)
    stack.callback(client.close)
    first = hello()
    client.sendall(first)
    server = door.accept()
    assert receive(server, len(first)) == first
    server.sendall(b"a server hello")
    server.close()
    assert end_of(client) == (b"a server hello", "fin")
