"""Real programs on unix sockets behind the relay: nginx, uvicorn and PostgreSQL."""

import contextlib
import os
import pwd
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.plain import unix_toml
from tests.support.programs import needs, program
from tests.support.worker import RunningWorker, wait_until

GET = b"GET /here HTTP/1.1\r\nHost: app.example.com\r\nConnection: close\r\n\r\n"
APP = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"uvicorn " + scope["path"].encode()})
"""
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


@pytest.fixture
def run(tmp_path, stack, pki):
    """A worker in front of this socket."""

    def run(path, **how):
        running = RunningWorker(tmp_path, unix_toml(pki, [path], **how))
        stack.callback(running.close)
        return running

    return run


@pytest.fixture
def serve(stack):
    """Start a program, and wait until its socket is there."""

    def serve(command, path, **how):
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **how
        )
        stack.enter_context(process)
        stack.callback(process.terminate)
        wait_until(lambda: accepts(path), f"{command[0]} to listen")

    return serve


def accepts(path):
    """Whether a program listens on this socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def ask(client):
    """The whole answer to a GET."""
    client.send(GET)
    answer = bytearray()
    with contextlib.suppress(EOFError):
        while data := client.receive_some():
            answer += data
    client.close()
    return bytes(answer)


@needs("nginx")
def test_nginx_on_a_unix_socket(run, serve, call, tmp_path):
    """With a PROXY header in front, as its listen directive asks for."""
    path = tmp_path / "nginx.sock"
    user = "user root;" if os.geteuid() == 0 else ""
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; {user} pid {tmp_path}/pid; error_log {tmp_path}/error.log; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {tmp_path}/body;\n"
        f"server {{ listen unix:{path} proxy_protocol;\n"
        'location / { return 200 "from $proxy_protocol_addr"; } } }\n'
    )
    serve(
        [program("nginx"), "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")],
        path,
        stderr=subprocess.DEVNULL,
    )
    answer = ask(call(run(path, pool='send_proxy = "v1"')))
    assert answer.endswith(b"from 127.0.0.1")


def test_uvicorn_on_a_unix_socket(run, serve, call, tmp_path):
    path = tmp_path / "app.sock"
    (tmp_path / "app.py").write_text(APP)
    serve(
        [sys.executable, "-m", "uvicorn", "app:app", "--uds", str(path), "--log-level", "error"],
        path,
        cwd=tmp_path,
    )
    relay = run(path)
    assert b"uvicorn /here" in ask(call(relay))
    assert relay.record()["reason"] == "finished"


@pytest.mark.skipif(not POSTGRES or os.geteuid() != 0, reason="needs PostgreSQL, and root")
def test_postgresql_on_a_unix_socket(run, serve, call, stack):
    """It runs as its own user, whose name is the peer_user."""
    entry = pwd.getpwnam("postgres")
    home = Path(tempfile.mkdtemp(prefix="relay-postgres-"))
    stack.callback(shutil.rmtree, home, ignore_errors=True)
    os.chown(home, entry.pw_uid, entry.pw_gid)
    programs = POSTGRES[-1].parent
    as_user = {"user": entry.pw_uid, "group": entry.pw_gid, "cwd": home}
    subprocess.run(
        [programs / "initdb", "-A", "trust", "-U", "relay", home / "data"],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=60,
        **as_user,
    )
    serve(
        [programs / "postgres", "-D", home / "data", "-k", home, "-c", "listen_addresses="],
        home / ".s.PGSQL.5432",
        stderr=subprocess.DEVNULL,
        **as_user,
    )
    client = call(run(home / ".s.PGSQL.5432", user="postgres"))
    words = b"\0\x03\0\0user\0relay\0database\0postgres\0\0"
    client.send(struct.pack("!I", len(words) + 4) + words)
    answer = b""
    while not answer.endswith(b"Z\0\0\0\x05I"):
        answer += client.receive_some()
    assert answer.startswith(b"R"), answer
    query = b"select 6 * 7\0"
    client.send(b"Q" + struct.pack("!I", len(query) + 4) + query)
    answer = b""
    while not answer.endswith(b"Z\0\0\0\x05I"):
        answer += client.receive_some()
    assert b"42" in answer
