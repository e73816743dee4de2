"""Real servers read the relay's PROXY header: nginx, HAProxy and httpd."""

import contextlib
import os
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.support.httpd import httpd_program
from tests.support.ports import held_port
from tests.support.programs import needs, program
from tests.support.worker import wait_until

GET = b"GET / HTTP/1.1\r\nHost: app.example.com\r\nConnection: close\r\n\r\n"
LEAN = '\nsend_proxy_tlvs = ["unique_id"]'
V1, V2 = 'send_proxy = "v1"', 'send_proxy = "v2"'

NGINX = """
daemon off; worker_processes 1; {user} pid {at}/nginx.pid; error_log {at}/error.log info;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f;
  uwsgi_temp_path {at}/u; scgi_temp_path {at}/s; default_type text/plain;
  server {{
    listen 127.0.0.1:{port} ssl proxy_protocol;
    ssl_certificate {certificate}; ssl_certificate_key {key};
    ssl_client_certificate {ca}; ssl_verify_client on;
    location / {{ return 200 "client=$proxy_protocol_addr:$proxy_protocol_port"; }}
  }}
}}
"""
HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend receiver
    bind 127.0.0.1:{port} accept-proxy ssl crt {both} ca-file {ca} verify required
    http-request return status 200 content-type text/plain lf-string \
"client=%[src]:%[src_port] %[dst]:%[dst_port] %[fc_pp_authority] %[fc_pp_unique_id] %[ssl_fc]"
"""
HTTPD = """
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
DocumentRoot "{at}"
<Directory "{at}">
    Require all granted
</Directory>
RemoteIPProxyProtocol On
SSLEngine on
SSLCertificateFile {certificate}
SSLCertificateKeyFile {key}
SSLCACertificateFile {ca}
SSLVerifyClient require
Header always set Client "expr=client=%{{REMOTE_ADDR}}"
"""


@pytest.fixture
def serve(pki, stack):
    """Start a server with this configuration; its port and its directory."""

    def serve(text, command):
        at = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        at.chmod(0o755)  # httpd's children run as another user
        port = stack.enter_context(held_port())
        both = at / "both.pem"
        both.write_text(pki.backend.certificate.read_text() + pki.backend.key.read_text())
        root = os.geteuid() == 0
        where = "/usr/lib/apache2/modules"
        names = ("mpm_event", "authz_core", "socache_shmcb", "ssl", "headers", "remoteip")
        file = at / "server.conf"
        file.write_text(
            text.format(
                at=at,
                port=port,
                both=both,
                certificate=pki.backend.certificate,
                key=pki.backend.key,
                ca=pki.ca,
                user=("user root;" if "http {" in text else "User nobody\nGroup #65534")
                if root
                else "",
                modules="\n".join(
                    f"LoadModule {name}_module {where}/mod_{name}.so" for name in names
                ),
            )
        )
        process = stack.enter_context(
            subprocess.Popen([*command(at, file)], stdin=subprocess.DEVNULL)
        )
        stack.callback(process.terminate)

        def accepts():
            assert process.poll() is None
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return True

        wait_until(accepts, "the server")
        return port, at

    return serve


def nginx(at, file):
    return program("nginx"), "-e", "stderr", "-p", str(at), "-c", str(file)


def haproxy(_at, file):
    return program("haproxy"), "-db", "-q", "-f", str(file)


def httpd(at, file):
    return httpd_program(), "-DFOREGROUND", "-d", str(at), "-f", str(file)


def ask(client):
    """The whole answer to a request."""
    client.send(GET)
    answer = bytearray()
    with contextlib.suppress(EOFError):
        while data := client.receive_some():
            answer += data
    return bytes(answer)


@needs("nginx")
@pytest.mark.parametrize("header", [V1, V2 + LEAN, V2 + "\nsend_proxy_tlvs = []"])
def test_nginx_reads_the_client_before_tls(serve, start, call, header):
    """nginx before 1.23 refuses headers of more than 107 bytes: `unique_id` fits."""
    port, _ = serve(NGINX, nginx)
    client = call(start([f"127.0.0.1:{port}"], pool=header))
    address = "{}:{}".format(*client.sock.getsockname())
    assert f"client={address}".encode() in ask(client)


@needs("nginx")
def test_a_header_that_nginx_refuses_fails_like_a_backend(serve, start, call):
    """nginx 1.22 says why in its log; later versions read the whole header."""
    port, at = serve(NGINX, nginx)
    relay = start([f"127.0.0.1:{port}"], pool=V2)
    client = call(relay)
    client.send(GET)
    data, end = client.end()
    if b"client=127.0.0.1" in data:
        return
    assert relay.record()["reason"] in {"backend_gone", "no_backend"}, end
    assert "PROXY protocol" in (at / "error.log").read_text()


@needs("haproxy")
def test_haproxy_reads_addresses_authority_and_session(serve, start, call):
    port, _ = serve(HAPROXY, haproxy)
    relay = start([f"127.0.0.1:{port}"], pool=V2 + "\nsend_proxy_certificate = true")
    client = call(relay)
    here = "{}:{}".format(*client.sock.getsockname())
    there = "{}:{}".format(*client.sock.getpeername())
    answer = ask(client).decode()
    client.close()
    session = relay.record()["session"]
    assert f"client={here} {there} app.example.com {session} 1" in answer


@needs("haproxy")
def test_haproxy_reads_v1(serve, start, call):
    port, _ = serve(HAPROXY, haproxy)
    client = call(start([f"127.0.0.1:{port}"], pool=V1))
    here = "{}:{}".format(*client.sock.getsockname())
    assert f"client={here}" in ask(client).decode()


@pytest.mark.skipif(httpd_program() is None, reason="httpd with mod_remoteip not installed")
@pytest.mark.parametrize("header", [V1, V2, V2 + LEAN])
def test_httpd_reads_the_client(serve, start, call, header):
    """mod_remoteip, and httpd logs and judges by that address."""
    port, _ = serve(HTTPD, httpd)
    client = call(start([f"127.0.0.1:{port}"], pool=header))
    assert b"\r\nClient: client=127.0.0.1\r\n" in ask(client)


@pytest.mark.skipif(httpd_program() is None, reason="httpd with mod_remoteip not installed")
def test_httpd_refuses_a_header_with_a_certificate(serve, start, call):
    """It takes 232 bytes at most."""
    port, at = serve(HTTPD, httpd)
    relay = start([f"127.0.0.1:{port}"], pool=V2 + "\nsend_proxy_certificate = true")
    call(relay).end()
    assert relay.record()["side"] == "outbound"
    assert "RemoteIPProxyProtocol" in (at / "error.log").read_text()
    print((at / "error.log").read_text())
