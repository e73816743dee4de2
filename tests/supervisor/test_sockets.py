"""Listening sockets per slot, and connects that do not wait."""

from __future__ import annotations

import contextlib
import os
import select
import socket

import pytest
import tomli

from relay.config.load import load_config
from relay.config.model import Config
from relay.errors import StartupError
from relay.sockets import only_address, start_connect
from relay.supervisor.closing_sockets import SETTLE_S, ClosingSockets
from relay.supervisor.listening import (
    bound_address,
    close_all,
    drop_new_connections,
    open_listeners,
)
from relay.supervisor.slot_sockets import SlotSockets


def _takes_filters() -> bool:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        try:
            drop_new_connections(listener)
        except PermissionError:
            return False
    return True


only_with_filters = pytest.mark.skipif(
    not _takes_filters(), reason="this kernel takes filters of TCP sockets from root only"
)


def test_port_zero_is_chosen_once_and_shared_by_all_slots():
    opened = open_listeners("here", "127.0.0.1:0", 4)
    assert len({bound_address(one) for one in opened}) == 1
    close_all(opened)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0"])
def test_what_is_accepted_inherits_no_delay_and_keepalive(address):
    (listener,) = open_listeners("here", address, 1)
    with listener, socket.create_connection(listener.getsockname()[:2], 10):
        select.select([listener], [], [], 10)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


TOML = """[[listener]]
name = "https"
listen = ["127.0.0.1:0"]
%s
[[listener.route]]
pool = "main"
mode = "passthrough"
[pool.main]
[[pool.main.backend]]
route = "b1"
address = "127.0.0.1:1"
"""
KEEPALIVE = "keepalive = { idle_s = 7, interval_s = 3, count = 2 }\nuser_timeout_s = 9"


def accepted_options(sockets):
    ((_, listener),) = sockets.of_slot(0)
    with socket.create_connection(listener.getsockname(), 10):
        select.select([listener], [], [], 10)
        accepted, _ = listener.accept()
        with accepted:
            return (
                accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                *(
                    accepted.getsockopt(socket.IPPROTO_TCP, name)
                    for name in (
                        socket.TCP_KEEPIDLE,
                        socket.TCP_KEEPINTVL,
                        socket.TCP_KEEPCNT,
                        socket.TCP_USER_TIMEOUT,
                    )
                ),
            )


def test_a_reload_changes_the_options_of_new_connections_only_then(stack):
    def configured(own):
        return Config.model_validate(tomli.loads(TOML % own))

    first = SlotSockets().extend(configured(""), 1)
    stack.callback(first.close_all_but)
    assert accepted_options(first) == (1, 60, 10, 6, 120_000)
    second = first.extend(configured(KEEPALIVE), 1)
    assert accepted_options(second) == (1, 60, 10, 6, 120_000), "the first one still serves"
    second.set_options()
    assert accepted_options(second) == (1, 7, 3, 2, 9_000)
    third = second.extend(configured("keepalive = false\nuser_timeout_s = 0"), 1)
    third.set_options()
    assert accepted_options(third)[0] == accepted_options(third)[-1] == 0


def test_ipv4_and_ipv6_of_one_port_are_two_addresses():
    six = open_listeners("six", "[::]:0", 1)
    four = open_listeners("four", f"0.0.0.0:{six[0].getsockname()[1]}", 1)
    close_all(six + four)


def test_another_process_that_shares_a_port_is_found():
    """Ports of this process itself are not refused."""
    first = open_listeners("here", "127.0.0.1:0", 1)
    port = first[0].getsockname()[1]
    with pytest.raises(StartupError, match="Address already in use"):
        open_listeners("here", f"127.0.0.1:{port}", 1)
    more = open_listeners("here", f"127.0.0.1:{port}", 1, frozenset({port}))
    close_all(first + more)


def test_an_address_with_connections_left_can_be_bound_again():
    (listener,) = open_listeners("here", "127.0.0.1:0", 1)
    port = listener.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port), 10):
        select.select([listener], [], [], 10)
        accepted, _ = listener.accept()
        listener.close()
        (again,) = open_listeners("here", f"127.0.0.1:{port}", 1)
        again.close()
        accepted.close()


def begin_to_connect(address, count, stack):
    """This many clients that do not wait."""
    clients = [
        stack.enter_context(socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET))
        for _ in range(count)
    ]
    for client in clients:
        client.setblocking(False)
        client.connect_ex(address[:2])
    return clients


def accept_from(listener, count):
    """Accept this many clients, as they come."""
    accepted = []
    while len(accepted) < count:
        assert select.select([listener], [], [], 20)[0], f"only {len(accepted)} of {count} came"
        accepted.append(listener.accept()[0])
    return accepted


@only_with_filters
@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0"])
def test_closing_one_of_two_sockets_resets_no_client(address, stack):
    goes, stays = open_listeners("here", address, 2)
    stack.callback(stays.close)
    early = begin_to_connect(stays.getsockname(), 40, stack)
    closing = ClosingSockets({goes})
    assert not closing.ready_to_close(100)
    late = begin_to_connect(stays.getsockname(), 40, stack)
    assert not closing.ready_to_close(100 + SETTLE_S / 2)
    assert closing.ready_to_close(100 + SETTLE_S)
    accepted = []
    with contextlib.suppress(BlockingIOError):
        while True:
            accepted.append(goes.accept()[0])
    there = {one.getpeername() for one in accepted}
    assert 0 < len(there) < 40
    assert not there & {client.getsockname() for client in late}
    goes.close()
    accepted += accept_from(stays, 80 - len(accepted))
    assert {one.getpeername() for one in accepted} == {
        client.getsockname() for client in early + late
    }
    close_all(accepted)


@only_with_filters
def test_a_socket_that_stays_after_all_admits_clients_again(stack):
    """Clients whose SYN was dropped repeat it, and get in."""
    (listener,) = open_listeners("here", "127.0.0.1:0", 1)
    stack.callback(listener.close)
    closing = ClosingSockets({listener})
    closing.ready_to_close(0)
    begin_to_connect(listener.getsockname(), 3, stack)
    with pytest.raises(BlockingIOError):
        listener.accept()
    closing.cancel()
    close_all(accept_from(listener, 3))


def test_an_additional_socket_gets_clients_once_its_slot_serves(body, tmp_path, stack):
    file = tmp_path / "relay.toml"
    file.write_text(f'[relay]\nstate_dir = "{tmp_path}"\n{body}')
    config = load_config(file)
    before = SlotSockets().extend(config, 1)
    stack.callback(before.close_all_but)
    after = before.extend(config, 3)
    stack.callback(after.close_all_but)
    first, second, third = (after.of_slot(slot)[0][1] for slot in range(3))
    begin_to_connect(first.getsockname(), 30, stack)
    close_all(accept_from(first, 30))
    for slot in (1, 2):
        after.listen(slot)
    begin_to_connect(first.getsockname(), 60, stack)
    for one in (first, second, third):
        close_all(accept_from(one, 1))


def test_when_no_socket_closes_nothing_waits():
    closing = ClosingSockets(set())
    assert closing.ready_to_close(5)
    closing.cancel()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_connect_does_not_wait_and_succeeds_later(address):
    with (
        socket.create_server(
            (address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET
        ) as server,
        contextlib.closing(start_connect(server.family, server.getsockname())) as client,
    ):
        assert client.getblocking() is False
        assert not os.get_inheritable(client.fileno())
        assert select.select([], [client], [], 10)[1]
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_refused_connect_is_told_at_once_or_by_so_error():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = closed.getsockname()
    try:
        client = start_connect(socket.AF_INET, address)
    except ConnectionRefusedError:
        return
    with contextlib.closing(client):
        select.select([], [client], [], 10)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


@pytest.mark.parametrize("address", [("127.0.0.1", 0), ("::1", 0)])
def test_clients_of_one_socket_connect_to_its_address(address):
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.create_server(address, family=family) as listener:
        assert only_address([listener]) == listener.getsockname()[:2]
        assert only_address([listener, listener]) is None
    assert only_address([]) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_socket_on_all_addresses_has_no_single_one(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        assert only_address([listener]) is None


def test_a_socket_without_a_port_has_no_address_yet(tmp_path):
    with socket.socket() as unbound, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(tmp_path / "in.sock"))
        assert only_address([unbound]) is None
        assert only_address([local]) is None
