"""The server name (SNI) that a backend gets, and the address it is called from."""

import contextlib
import socket
import ssl
import subprocess
import tempfile
from pathlib import Path

import pytest

from relay.sockets import SourceError, start_connect
from relay.worker.backend import MAX_NAMES
from relay.worker.server_name import name_to_send
from tests.support.httpd import httpd_program
from tests.support.ports import held_port
from tests.support.programs import needs, program
from tests.support.worker import RunningWorker, client_context, pool_toml, route_toml, wait_until

NAMES = ("a.example.com", "b.example.com")


@pytest.fixture
def named(backend):
    """Start a backend that notes the server name of each connection."""

    def make(**settings):
        made = backend(**settings)
        made.names = []
        made.context.sni_callback = lambda _sock, name, _context: made.names.append(name)
        return made

    return make


def ask(client, text=b"?"):
    client.send(text)
    assert client.receive(len(text)) == text
    client.close()


SENT = {
    "by default its own": ("", "backend.example.com"),
    "another": ('sni = "site.example.com"', "site.example.com"),
    "the client's": ('sni = "client"', "a.example.com"),
}


@pytest.mark.parametrize(("pool", "expected"), SENT.values(), ids=SENT)
def test_the_server_name_is_apart_from_the_verified_name(start, call, named, pool, expected):
    server = named()
    relay = start([server.address], pool=pool)
    ask(call(relay, "a.example.com"))
    assert server.names == [expected]
    assert relay.record()["reason"] == "finished"


@pytest.mark.parametrize("sni", ["wrong.example.com", "client"])
def test_another_server_name_verifies_nothing_else(start, call, named, pki, sni):
    """The certificate must carry `name`, also if it carries the server name."""
    server = named(files=pki.backend_wrong_name)
    relay = start([server.address], pool=f'sni = "{sni}"')
    client = call(relay, "wrong.example.com")
    with contextlib.suppress(EOFError, OSError, ssl.SSLError):
        client.receive_some()
    assert relay.record()["reason"] == "backend_wrong_name"


@pytest.mark.parametrize("name", [None, "192.0.2.7", "::1"])
def test_a_client_without_a_host_name_gives_none(start, call, named, pki, name):
    server = named()
    context = client_context(pki, pki.client)
    context.check_hostname = False
    relay = start([server.address], pool='sni = "client"')
    ask(call(relay, name, context=context))
    assert server.names == [None]


@pytest.mark.parametrize("sni", ["10.1.2.3", "a..b", "a b", "", "::1", "-a.example.com"])
def test_no_name_is_sent_that_no_host_can_have(sni):
    assert name_to_send(sni) == b""


def test_a_backends_own_value_wins_over_the_pools(tmp_path, pki, stack, call, named):
    servers = [named(), named()]
    pools = pool_toml(pki, [each.address for each in servers], extra='sni = "client"')
    toml = (
        f'[[listener]]\nname = "https"\nlisten = ["127.0.0.1:0"]\n{route_toml(pki)}\n{pools}'
        'sni = "second.example.com"\n'  # of the last backend
    )
    relay = RunningWorker(tmp_path, toml)
    stack.callback(relay.close)
    for _ in range(2):
        ask(call(relay, "a.example.com"))
    assert [each.names for each in servers] == [["a.example.com"], ["second.example.com"]]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed_under_its_own_name_only(start, call, named, version):
    server = named(version=version)
    relay = start([server.address], pool='sni = "client"')
    resumed = []
    for name in (*NAMES, *NAMES, *NAMES):
        ask(call(relay, name))
        resumed.append(relay.record(len(resumed))["reason"] == "finished" and server.resumed)
    assert resumed == [0, 0, 1, 2, 3, 4]


def test_sessions_of_the_last_64_names_are_kept(start, call, named):
    server = named()
    relay = start([server.address], pool='sni = "client"')
    for number in range(MAX_NAMES + 1):
        ask(call(relay, f"n{number}.example.com"))
        relay.record(number)
    assert server.resumed == 0
    ask(call(relay, "n0.example.com"))  # the oldest is forgotten
    relay.record(MAX_NAMES + 1)
    assert server.resumed == 0
    ask(call(relay, f"n{MAX_NAMES}.example.com"))
    assert server.resumed == 1


# Real servers with two virtual hosts.


def nginx_of(at, port, pki):
    user = "user root;"
    paths = "".join(
        f"{kind}_temp_path {at}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    hosts = "".join(
        f"server {{ listen 127.0.0.1:{port} ssl; server_name {name};"
        f" ssl_certificate {pki.backend.certificate}; ssl_certificate_key {pki.backend.key};"
        f" ssl_client_certificate {pki.ca}; ssl_verify_depth 3; ssl_verify_client on;"
        f' location / {{ return 200 "{name}"; }} }}\n'
        for name in NAMES
    )
    (at / "conf").write_text(
        f"daemon off; {user} pid {at}/pid; error_log {at}/error.log;\nevents {{ }}\n"
        f"http {{ access_log off; {paths}\n{hosts} }}\n"
    )
    return [program("nginx"), "-c", at / "conf", "-p", at]


def httpd_of(at, port, pki):
    modules = "\n".join(
        f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so"
        for name in ("mpm_event", "authz_core", "socache_shmcb", "ssl", "rewrite")
    )
    # Another depth is another TLS setting: httpd refuses to mix these two hosts.
    hosts = "\n".join(
        f"<VirtualHost 127.0.0.1:{port}>\nServerName {name}\nSSLEngine on\n"
        f"SSLCertificateFile {pki.backend.certificate}\nSSLCertificateKeyFile {pki.backend.key}\n"
        f"SSLCACertificateFile {pki.ca}\nSSLVerifyClient require\nSSLVerifyDepth {depth}\n"
        f'ErrorDocument 403 "{name}"\n<Location "/">\nRequire all denied\n</Location>\n'
        "</VirtualHost>"
        for depth, name in enumerate(NAMES, 3)
    )
    (at / "conf").write_text(
        f'ServerRoot "{at}"\nServerName x.example.com\nDefaultRuntimeDir "{at}"\n'
        f'PidFile "{at}/pid"\nErrorLog "{at}/error.log"\nListen 127.0.0.1:{port}\n{modules}\n'
        f"User nobody\nGroup #65534\n{hosts}\n"
    )
    return [
        httpd_program() or pytest.skip("httpd not installed"),
        "-DFOREGROUND",
        "-f",
        at / "conf",
    ]


@needs("nginx")
@pytest.mark.parametrize("server_of", [nginx_of, httpd_of], ids=["nginx", "httpd"])
def test_virtual_hosts_answer_421_without_the_clients_name(start, call, pki, stack, server_of):
    at = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    at.chmod(0o755)
    port = stack.enter_context(held_port())
    server = stack.enter_context(
        subprocess.Popen(server_of(at, port, pki), stdin=subprocess.DEVNULL)
    )
    stack.callback(server.terminate)

    def accepts():
        assert server.poll() is None, (at / "error.log").read_text()
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True

    wait_until(accepts, "the server")
    answers = {}
    for sni in ("client", NAMES[0]):
        relay = start([f"127.0.0.1:{port}"], pool=f'sni = "{sni}"')
        for name in NAMES:
            client = call(relay, name)
            client.send(b"GET / HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % name.encode())
            answer = b""
            with contextlib.suppress(EOFError):
                while data := client.receive_some():
                    answer += data
            answers[sni, name] = (
                b" 421 " in answer,
                name.encode() in answer.partition(b"\r\n\r\n")[2],
            )
    assert answers == {
        ("client", NAMES[0]): (False, True),
        ("client", NAMES[1]): (False, True),
        (NAMES[0], NAMES[0]): (False, True),
        (NAMES[0], NAMES[1]): (True, False),
    }


# The address that backends are called from.


@pytest.mark.parametrize("source", ['"127.0.0.9"', '["127.0.0.9", "::1"]'])
def test_backends_are_called_from_the_source_address(start, pair, door, source):
    opened = door()
    relay = start([opened.address], pool=f"source = {source}")
    _, peer = pair(relay, opened)
    assert peer.sock.getpeername()[0] == "127.0.0.9"


def test_many_connections_share_the_ports_of_the_source():
    """The port is chosen by the connect, so it is free for other destinations."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = start_connect(
            socket.AF_INET, server.getsockname(), sources={socket.AF_INET: ("127.0.0.9", 0)}
        )
        assert sock.getsockopt(socket.IPPROTO_IP, 24) == 1
        assert sock.getsockname()[0] == "127.0.0.9"
        sock.close()


def test_the_source_of_the_other_family_is_not_used():
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = start_connect(
            socket.AF_INET, server.getsockname(), sources={socket.AF_INET6: ("::1", 0)}
        )
        assert sock.getsockname()[0] == "127.0.0.1"
        sock.close()


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(SourceError, match=r"cannot connect from 192\.0\.2\.1: Cannot assign"):
        start_connect(socket.AF_INET, ("127.0.0.1", 9), sources={socket.AF_INET: ("192.0.2.1", 0)})


def test_a_source_that_has_gone_blames_no_backend(start, call, backend):
    """The machine lost the address after the start."""
    server = backend()
    relay = start([server.address], pool='source = "192.0.2.1"')
    client = call(relay)
    with contextlib.suppress(EOFError, OSError, ssl.SSLError):
        client.receive_some()
    record = relay.record()
    assert record["reason"] == "no_resources"
    assert "cannot connect from 192.0.2.1: Cannot assign requested address" in record["detail"]
    assert relay.value("relay_handshakes_total", "outbound", "no_resources") == 1
