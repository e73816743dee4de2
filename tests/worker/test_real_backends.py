"""Real servers as backends: nginx, httpd and OpenSSL's own s_server."""

import contextlib
import os
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.support.httpd import httpd_program
from tests.support.ports import held_port
from tests.support.programs import Nginx, needs, program
from tests.support.worker import client_context, wait_until

GET = b"GET / HTTP/1.1\r\nHost: app.example.com\r\nConnection: close\r\n\r\n"


def ask(client, request=GET):
    """Send a request: the whole answer."""
    client.send(request)
    answer = bytearray()
    with contextlib.suppress(EOFError):
        while data := client.receive_some():
            answer += data
    client.close()
    return bytes(answer)


@needs("nginx")
def test_nginx_that_closes_without_close_notify_has_finished(start, call, tmp_path, pki):
    """The client ended first and has the whole answer; nginx then sends a bare FIN."""
    with Nginx(tmp_path, pki) as nginx:
        relay = start([nginx.address])
        for number in range(3):
            client = call(relay)
            client.send(GET.replace(b"Connection: close\r\n", b""))
            assert b"relay machine" in client.receive_some()
            client.close()
            record = relay.record(number)
            assert (record["reason"], record["side"], record["backend"]) == ("finished", "", "b1")


@needs("nginx")
def test_nginx_agrees_on_h2(start, call, tmp_path, pki):
    with Nginx(tmp_path, pki) as nginx:
        relay = start([nginx.address], route='alpn = ["h2", "http/1.1"]')
        client = call(relay, context=client_context(pki, pki.client, alpn=("h2",)))
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"))
        assert client.receive_some()[3] == 4, "its SETTINGS"


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@needs("openssl")
def test_s_server_with_client_certificates_is_used_again(start, call, pki, stack, version):
    port = stack.enter_context(held_port())
    files = ["-cert", pki.backend.certificate, "-key", pki.backend.key, "-CAfile", pki.ca]
    command = [
        program("openssl"),
        "s_server",
        "-accept",
        str(port),
        version,
        "-www",
        "-Verify",
        "2",
        *files,
    ]
    server = stack.enter_context(
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    )
    stack.callback(server.kill)

    def accepts():
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True

    wait_until(accepts, "s_server")
    relay = start([f"127.0.0.1:{port}"])
    for number in range(4):
        assert b"HTTP/1.0 200 ok" in ask(call(relay))
        assert relay.record(number)["backend"] == "b1"
    assert relay.value("relay_handshakes_total", "outbound", "backend_alert_other") == 0


CONFIG = """
ServerRoot "{at}"
ServerName backend.example.com
DefaultRuntimeDir "{at}"
PidFile "{at}/httpd.pid"
ErrorLog "{at}/error.log"
Listen 127.0.0.1:{port}
{modules}
{user}
StartServers 1
ServerLimit 1
ThreadsPerChild 8
MaxRequestWorkers 8
DocumentRoot "{at}/htdocs"
<Directory "{at}/htdocs">
    AllowOverride None
    Require all granted
</Directory>
SSLEngine on
SSLProtocol {protocol}
SSLCertificateFile {certificate}
SSLCertificateKeyFile {key}
SSLCACertificateFile {ca}
SSLVerifyClient none
<Location /secret>
    SSLVerifyClient require
    SSLVerifyDepth 3
</Location>
"""


@pytest.fixture
def httpd(pki, stack):
    """httpd that asks for a client certificate only at /secret."""
    found = httpd_program()
    if found is None:
        pytest.skip("httpd not installed")

    def start_httpd(protocol):
        # httpd's children run as another user, who cannot read tmp_path.
        at = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (at / "htdocs" / "secret").mkdir(parents=True)
        (at / "htdocs" / "index.html").write_text("open to all\n")
        (at / "htdocs" / "secret" / "index.html").write_text("for the machine alone\n")
        for each in (at, *at.rglob("*")):
            each.chmod(0o755)
        port = stack.enter_context(held_port())
        where = "/usr/lib/apache2/modules"
        names = ("mpm_event", "authz_core", "dir", "socache_shmcb", "ssl")
        modules = "\n".join(f"LoadModule {name}_module {where}/mod_{name}.so" for name in names)
        user = "User nobody\nGroup #65534" if os.geteuid() == 0 else ""
        text = CONFIG.format(
            at=at,
            port=port,
            modules=modules,
            user=user,
            protocol=protocol,
            certificate=pki.backend.certificate,
            key=pki.backend.key,
            ca=pki.ca,
        )
        (at / "httpd.conf").write_text(text + "DirectoryIndex index.html\n")
        command = [found, "-DFOREGROUND", "-d", str(at), "-f", str(at / "httpd.conf")]
        server = stack.enter_context(subprocess.Popen(command, stdin=subprocess.DEVNULL))
        stack.callback(server.terminate)

        def accepts():
            assert server.poll() is None, (at / "error.log").read_text()
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return True

        wait_until(accepts, "httpd")
        return f"127.0.0.1:{port}"

    return start_httpd


def test_httpd_gets_the_machine_certificate_for_a_location(start, call, httpd):
    """TLS 1.3 post-handshake authentication, as httpd's own proxy does it."""
    relay = start([httpd("TLSv1.3")])
    assert b"open to all" in ask(call(relay))
    for _ in range(2):
        assert b"for the machine alone" in ask(call(relay), GET.replace(b"GET /", b"GET /secret/"))


def test_httpd_that_renegotiates_in_tls_12_stays_in_use(start, call, httpd):
    """The relay does not renegotiate; post-handshake authentication has replaced it."""
    relay = start([httpd("TLSv1.2")])
    assert b"for the machine alone" not in ask(call(relay), GET.replace(b"GET /", b"GET /secret/"))
    assert b"open to all" in ask(call(relay))
    record = relay.record()
    assert record["backend"] == "b1"
