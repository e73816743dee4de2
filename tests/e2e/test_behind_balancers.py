"""A whole relay behind real balancers that send PROXY headers."""

import os
import socket
import ssl
import stat
from functools import partial

import pytest

from tests.support.balancers import HaProxy, NginxStream, has_stream
from tests.support.configs import write_body
from tests.support.gateway import wait_until
from tests.support.peer import PATIENCE_S, Peer
from tests.support.programs import needs
from tests.support.tables import listener_table, pool_table, route_table
from tests.support.worker import client_context, connect, receive

FROM_LOOPBACK = '{ from = ["127.0.0.1"] }'
FROM_UNIX = '{ from = ["unix"] }'


@pytest.fixture
def client(pki):
    """Connect to a port with the good certificate, and have an echo."""
    context = client_context(pki, pki.client)

    def client(port):
        with connect(port, context) as tls:
            tls.sendall(b"hello")
            assert receive(tls, 5) == b"hello"
            return tls.getsockname()

    return client


@pytest.fixture
def directory(tmp_path):
    made = tmp_path / "balancer"
    made.mkdir()
    return made


def check_client(gateway, host, port):
    """The line of the session names the balancer's client, and the balancer."""
    (line,) = gateway.wait_for_access(1, sni="app.example.com")
    assert line["client"] == f"{host}:{port}"
    assert line["peer"].partition(":")[0] in {"127.0.0.1", "unix"}
    assert line["peer"] != line["client"]
    return line


@needs("haproxy")
@pytest.mark.parametrize(
    "options", ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl-cn", "send-proxy-v2 check"]
)
def test_haproxy_says_who_the_client_is(start, pki, echo, client, directory, options):
    gateway = start(write_body(pki, echo, accept_proxy=FROM_LOOPBACK))
    server = f"127.0.0.1:{gateway.port()} {options}"
    with HaProxy(directory, server) as balancer:
        line = check_client(gateway, *client(balancer.port))
        assert line["proxy"]["destination"] == f"127.0.0.1:{balancer.port}"


@needs("haproxy")
def test_haproxys_tlvs_are_in_the_log(start, pki, echo, client, directory):
    gateway = start(write_body(pki, echo, accept_proxy=FROM_LOOPBACK))
    server = f"127.0.0.1:{gateway.port()} send-proxy-v2 proxy-v2-options crc32c,unique-id"
    with HaProxy(directory, server) as balancer:
        check_client(gateway, *client(balancer.port))


@pytest.mark.skipif(not has_stream(), reason="nginx with its stream module not installed")
def test_nginx_says_who_the_client_is(start, pki, echo, client, directory):
    gateway = start(write_body(pki, echo, accept_proxy=FROM_LOOPBACK))
    with NginxStream(directory, f"127.0.0.1:{gateway.port()}") as balancer:
        check_client(gateway, *client(balancer.port))


def haproxy_before(directory, ports):
    servers = [f"127.0.0.1:{port} send-proxy-v2" for port in ports]
    return HaProxy(directory, "\n  server other ".join(servers))


def nginx_before(directory, ports):
    return NginxStream(directory, " ".join(f"127.0.0.1:{port}" for port in ports))


@needs("haproxy")
@pytest.mark.skipif(not has_stream(), reason="nginx with its stream module not installed")
def test_a_client_has_its_backend_at_every_relay(start, pki, echo, tmp_path):
    """HAProxy and nginx give connections to the next of two relays."""
    backends = pool_table(pki, [echo.address] * 5, sticky="source")
    listener = listener_table(route_table(pki)).replace(
        "[[listener]]\n", f"[[listener]]\naccept_proxy = {FROM_LOOPBACK}\n"
    )
    relays = [start(listener + backends, relay={"workers": 1}) for _ in range(2)]
    ports = [relay.port() for relay in relays]
    context = client_context(pki, pki.client)

    def choices(relay):
        lines = [line for line in relay.access() if line["backend"]]
        return {line["client"].partition(":")[0]: line["backend"] for line in lines}

    def visit(balancer, client):
        """Whether each relay has seen this client now."""
        target = ("127.0.0.1", balancer.port)
        with (
            socket.create_connection(target, PATIENCE_S, (client, 0)) as sock,
            context.wrap_socket(sock, server_hostname="app.example.com") as tls,
        ):
            tls.sendall(b"hello")
            assert receive(tls, 5) == b"hello"
        return all(client in choices(relay) for relay in relays)

    for each, before in enumerate((haproxy_before, nginx_before), 1):
        directory = tmp_path / before.__name__
        directory.mkdir()
        with before(directory, ports) as balancer:
            for client in [f"127.0.{each}.{number}" for number in range(1, 7)]:
                wait_until("both know it", partial(visit, balancer, client))
    assert choices(relays[0]) == choices(relays[1])
    assert len(choices(relays[0])) == 12
    assert len(set(choices(relays[0]).values())) > 1


@needs("haproxy")
def test_haproxy_connects_to_a_unix_socket(start, pki, echo, client, directory, short_path):
    path = short_path / "in.sock"
    gateway = start(write_body(pki, echo, (f"unix:{path}",), accept_proxy=FROM_UNIX))
    with HaProxy(directory, f"unix@{path} send-proxy-v2") as balancer:
        line = check_client(gateway, *client(balancer.port))
        assert line["peer"] == "unix"


@pytest.fixture
def through(pki, stack):
    """A client that a balancer on this machine passes on to a unix socket."""
    context = client_context(pki, pki.client)

    def through(path, header=b"PROXY TCP4 192.0.2.7 198.51.100.9 1 2\r\n"):
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.settimeout(PATIENCE_S)
        sock.connect(str(path))
        return Peer(sock, context, server_side=False, name="app.example.com", before=header)

    return through


def echoes(peer, data=b"hello"):
    peer.send(data)
    return peer.receive(len(data)) == data


def test_a_unix_listener_serves_and_survives_reloads(start, pki, echo, short_path, through):
    """Sessions and the socket stay over a reload; its file goes with the relay."""
    path = short_path / "in.sock"
    body = write_body(
        pki, echo, (f"unix:{path}", "127.0.0.1:0"), accept_proxy='{ from = ["unix", "127.0.0.1"] }'
    )
    gateway = start(body, relay={"workers": 2})
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert gateway.endpoints["listeners"]["https"][0] == f"unix:{path}"
    peers = [through(path) for _ in range(8)]
    assert all(map(echoes, peers))
    assert echoes(peers[0], bytes(range(256)) * 4_000)
    inode = path.stat().st_ino
    gateway.change_a_setting()
    assert gateway.command("reload").returncode == 0
    assert path.stat().st_ino == inode
    assert all(map(echoes, peers))
    later = [through(path) for _ in range(4)]
    assert all(map(echoes, later))
    for peer in [*peers, *later]:
        peer.close()
    lines = gateway.wait_for_access(12, reason="finished")
    assert {line["client"] for line in lines} == {"192.0.2.7:1"}
    assert {line["peer"] for line in lines} == {"unix"}
    gateway.stop()
    assert not path.exists()


def test_a_killed_workers_unix_socket_is_served(start, pki, echo, short_path, through):
    path = short_path / "in.sock"
    gateway = start(
        write_body(pki, echo, (f"unix:{path}",), accept_proxy=FROM_UNIX), relay={"workers": 1}
    )
    (pid,) = gateway.workers().values()
    os.kill(pid, 9)
    for _ in range(5):
        peer = through(path)
        assert echoes(peer)
        peer.close()


def test_a_reload_without_the_unix_socket_removes_it(start, pki, echo, short_path, through):
    path = short_path / "in.sock"
    gateway = start(write_body(pki, echo, (f"unix:{path}",), accept_proxy=FROM_UNIX))
    peer = through(path)
    assert echoes(peer)
    gateway.write(write_body(pki, echo))
    assert gateway.command("reload").returncode == 0
    assert not path.exists()
    assert echoes(peer)
    with pytest.raises(FileNotFoundError):
        through(path)


def test_a_socket_left_by_a_killed_relay_is_replaced(start, pki, echo, short_path, through):
    path = short_path / "in.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    start(write_body(pki, echo, (f"unix:{path}",), accept_proxy=FROM_UNIX))
    assert echoes(through(path))


def test_a_client_of_a_unix_socket_without_an_address(start, pki, echo, short_path, through):
    path = short_path / "in.sock"
    gateway = start(write_body(pki, echo, (f"unix:{path}",), accept_proxy=FROM_UNIX))
    peer = through(path, b"PROXY UNKNOWN\r\n")
    assert echoes(peer)
    assert gateway.command("kick", "192.0.2.1").returncode == 0
    peer.close()
    (line,) = gateway.wait_for_access(1, reason="finished")
    assert (line["client"], line["peer"]) == ("unix", "unix")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.sendall(b"PROXY TCP4 1.2")
    lines = gateway.wait_for_access(1, reason="peer_gone")
    assert "closed after 14 bytes of its PROXY header" in lines[0]["detail"]


def test_a_relay_check_knows_a_unix_listener(start, pki, echo, short_path):
    path = short_path / "in.sock"
    gateway = start(write_body(pki, echo, (f"unix:{path}",), accept_proxy=FROM_UNIX))
    assert gateway.command("check").returncode == 0
    gateway.write(write_body(pki, echo, (f"unix:{path}",)))
    checked = gateway.command("check")
    assert checked.returncode != 0
    assert 'set accept_proxy = { from = ["unix"] }' in checked.stderr


def test_fragments_slow_peers_and_strangers_disturb_nobody(start, pki, echo, stack):
    gateway = start(write_body(pki, echo, accept_proxy=FROM_LOOPBACK), timeouts={"hello_s": 1})
    context = client_context(pki, pki.client)
    header = b"PROXY TCP4 192.0.2.7 198.51.100.9 1 2\r\n"
    good = Peer(
        stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port()), PATIENCE_S)),
        context,
        server_side=False,
        name="app.example.com",
        before=header,
    )
    assert echoes(good)
    slow = socket.create_connection(("127.0.0.1", gateway.port()), PATIENCE_S)
    slow.sendall(header[:10])
    stranger = socket.create_connection(
        ("127.0.0.1", gateway.port()), PATIENCE_S, source_address=("127.0.0.2", 0)
    )
    stranger.sendall(header)
    for sock in (slow, stranger):
        with sock:
            assert sock.recv(1) == b""
    reasons = wait_until(
        "both are logged",
        lambda: len(gateway.access()) == 2 and {one["reason"] for one in gateway.access()},
    )
    assert reasons == {"hello_timeout", "proxy_peer_refused"}
    assert echoes(good)
    with pytest.raises((ssl.SSLError, OSError)):
        connect(gateway.port(), context)
    assert echoes(good)
    good.close()
