"""Checks of backends without TLS of the relay: unix sockets, and passthrough pools."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from relay.checker.backend_check import BackendCheck
from relay.checker.check import check_settings
from relay.config.load import load_config
from relay.errors import Reason
from relay.supervisor.peer_users import find_peer_users
from relay.tls.context_inputs import ContextInputs
from relay.tls.contexts import build_generation
from tests.support.clockwork import Clockwork
from tests.support.peer import PATIENCE_S
from tests.support.plain import UnixDoor, passthrough_toml, unix_toml
from tests.support.ports import held_port


@pytest.fixture
def check(tmp_path):
    """Check the only backend of this configuration once."""

    def check(toml):
        file = tmp_path / "relay.toml"
        file.write_text(toml)
        config = load_config(file)
        made = build_generation(config, 1, ContextInputs(users=find_peer_users(config)[0]))
        (target,) = made.backends("main")
        pool = config.pool["main"]
        clockwork, results = Clockwork(), []
        BackendCheck(
            target,
            check_settings(pool, pool.health, config, "main"),
            ((target.family, target.sockaddr),),
            0,
            selector=clockwork.selector,
            at=clockwork.at,
            on_end=results.append,
        ).begin()
        clockwork.run_until(lambda: results)
        return results[0]

    return check


@pytest.fixture
def unix_door(tmp_path, stack):
    made = UnixDoor(tmp_path / "app.sock")
    stack.callback(made.close)
    return made


HEALTH = "health = { timeout_s = 5 }"
GET = 'health = { timeout_s = 5, http_get = "/health" }'


def test_a_unix_socket_passes_if_its_user_listens(check, pki, unix_door):
    result = check(unix_toml(pki, [unix_door.path], pool=HEALTH))
    assert result.ok
    assert result.detail.startswith("connected in ")
    assert result.address == f"unix:{unix_door.path}"


def test_a_unix_socket_of_another_user_fails(check, pki, unix_door):
    result = check(unix_toml(pki, [unix_door.path], user="4242", pool=HEALTH))
    assert result.reason == Reason.BACKEND_WRONG_USER
    assert result.label == "connect_failed"
    assert f"(user id {os.getuid()})" in result.detail


@pytest.mark.parametrize(("status", "passes"), [(b"200 OK", True), (b"503 Busy", False)])
def test_a_get_goes_over_the_unix_socket(check, pki, unix_door, status, passes):
    def answer():
        sock = unix_door.accept()
        assert sock.recv(65536).startswith(b"GET /health HTTP/1.1\r\n")
        sock.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    result = check(unix_toml(pki, [unix_door.path], pool=GET))
    thread.join(PATIENCE_S)
    assert result.ok is passes
    assert result.detail.startswith("GET /health answered ")


def test_a_socket_that_nobody_serves_fails(check, pki, unix_door):
    unix_door.close()
    result = check(unix_toml(pki, [unix_door.path], pool=HEALTH))
    assert result.reason == Reason.BACKEND_REFUSED


def test_a_passthrough_pool_is_checked_by_a_connection(check):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert check(passthrough_toml([f"127.0.0.1:{port}"], pool=HEALTH)).ok
    with held_port() as port:
        result = check(passthrough_toml([f"127.0.0.1:{port}"], pool=HEALTH))
    assert result.reason == Reason.BACKEND_REFUSED
