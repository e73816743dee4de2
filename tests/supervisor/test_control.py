"""The control socket, with clients that behave and clients that do not."""

from __future__ import annotations

import contextlib
import json
import random
import selectors
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

from relay.errors import ControlError, StartupError
from relay.supervisor.control import (
    CLIENTS,
    PATIENCE_S,
    REQUEST_BYTES,
    ControlServer,
    parse_request,
)
from relay.supervisor.control_client import ask, control_path
from relay.supervisor.unix_sockets import open_control
from tests.support.gateway import wait_until


def send(gateway, data, patience_s=10):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(patience_s)
        client.connect(str(gateway.state_dir / "control.sock"))
        client.sendall(data)
        with client.makefile("rb") as reader:
            return reader.readline()


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{}\n",
        b"[]\n",
        b"null\n",
        b"status\n",
        b'{"command": "dance"}\n',
        b'{"command": ["stop"]}\n',
        b'{"command": 1}\n',
        b"\xff\xfe\n",
        b"[" * 4000 + b"\n",
        b"x" * REQUEST_BYTES,
    ],
)
def test_nonsense_gets_an_error_and_changes_nothing(relay_for_reading, line):
    reply = json.loads(send(relay_for_reading, line))
    assert reply["ok"] is False
    assert "expected one line" in reply["error"]
    assert ask(relay_for_reading.state_dir, "status", 10)["state"] == "serving"


@pytest.fixture(scope="module")
def relay_for_reading(body):
    from tests.support.gateway import Gateway

    with Gateway(body, relay={"workers": 1}) as gateway:
        yield gateway


def test_the_socket_is_for_its_owner_only(relay_for_reading):
    assert stat.S_IMODE((relay_for_reading.state_dir / "control.sock").stat().st_mode) == 0o600


def test_status_says_who_serves_where(relay_for_reading):
    reply = ask(relay_for_reading.state_dir, "status", 10)
    assert reply["generation"] == 1
    assert reply["supervisor"]["pid"] == relay_for_reading.pid
    assert reply["listeners"] == relay_for_reading.endpoints["listeners"]
    (worker,) = reply["workers"]
    assert (worker["slot"], worker["pid"], worker["phase"], worker["connections"]) == (
        0,
        relay_for_reading.workers()[0],
        "serving",
        0,
    )
    assert worker["heartbeat_age_s"] < 5


def test_a_client_that_hangs_up_at_any_moment_is_forgotten(relay_for_reading):
    request = b'{"command": "status"}\n'
    for length in range(len(request) + 1):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(relay_for_reading.state_dir / "control.sock"))
            client.sendall(request[:length])
    assert ask(relay_for_reading.state_dir, "status", 10)["ok"]


def test_silent_clients_are_closed_and_do_not_block_others(relay_for_reading):
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(CLIENTS + 8)]
        for client in silent:
            client.settimeout(PATIENCE_S * 3)
            client.connect(str(relay_for_reading.state_dir / "control.sock"))
        assert all(client.recv(1) == b"" for client in silent)
    assert time.monotonic() - started < PATIENCE_S * 3
    assert ask(relay_for_reading.state_dir, "status", 10)["ok"]


def test_a_client_that_does_not_read_is_closed(short_path):
    listener = open_control(short_path / "c.sock")
    selector = selectors.PollSelector()
    clients = []
    server = ControlServer(listener, selector, lambda _request, client: clients.append(client))
    with socket.socket(socket.AF_UNIX) as slow:
        slow.connect(str(short_path / "c.sock"))
        slow.sendall(b'{"command": "status"}\n')

        def turn():
            for key, events in selector.select(0.01):
                key.data(events)
            return clients

        wait_until("the request came", turn)
        clients[0].reply({"ok": True, "much": "x" * 4_000_000})
        for _ in range(20):
            turn()
        assert len(selector.get_map()) == 2
        server.expire(time.monotonic() + PATIENCE_S + 1)
        assert len(selector.get_map()) == 1
    server.close()
    selector.close()


def test_random_bytes_are_never_a_request():
    chance = random.Random(1)
    for _ in range(2000):
        assert parse_request(chance.randbytes(chance.randrange(60))) is None


def test_no_relay_is_an_error_that_names_the_socket(short_path):
    with pytest.raises(ControlError, match=f"no relay answers at {short_path}/control.sock"):
        ask(short_path, "status", 1)


def test_a_server_that_says_nothing_is_an_error_in_time(short_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(control_path(short_path)))
        listener.listen()
        with pytest.raises(ControlError, match="did not answer status within"):
            ask(short_path, "status", 0.2)


@pytest.mark.parametrize("said", [b"", b"not json\n", b"[1]\n", b'{"ok": tr'])
def test_a_server_that_talks_nonsense_is_an_error(short_path, said):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(control_path(short_path)))
        listener.listen()
        listener.settimeout(20)

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(said)

        server = threading.Thread(target=answer)
        server.start()
        with pytest.raises(ControlError, match="hung up during status"):
            ask(short_path, "status", 10)
        server.join(20)


def test_a_path_that_is_too_long_for_a_socket_says_so(tmp_path):
    with pytest.raises(
        StartupError,
        match=r"bytes long, and the kernel allows 107; choose a shorter relay\.state_dir",
    ):
        open_control(tmp_path / ("x" * 120) / "control.sock")


def test_another_file_at_the_sockets_path_is_not_touched(short_path):
    (short_path / "control.sock").write_text("precious")
    with pytest.raises(
        StartupError,
        match="cannot make the control socket: a file that is not a socket has this name",
    ):
        open_control(short_path / "control.sock")
    assert Path(short_path / "control.sock").read_text() == "precious"
