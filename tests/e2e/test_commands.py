"""The `relay` command as an operator uses it: output, exit codes, no traceback."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

import pytest

from tests.support.client import talk
from tests.support.gateway import ROOT, Gateway
from tests.support.tables import listener_table, pool_table, route_table

AS_ROOT = os.geteuid() == 0


def relay(*arguments, cwd="/"):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def lines_of(done):
    """The lines of stderr; each is a message of the command, none is a traceback."""
    lines = done.stderr.splitlines()
    assert all(line.startswith("relay: ") for line in lines), done.stderr
    return lines


@pytest.fixture
def stopped(pki):
    """`stopped(body)`: a gateway that is not started, to run commands with."""
    made = []

    def make(body, **sections):
        made.append(Gateway(body, **sections))
        return made[-1]

    yield make
    for gateway in made:
        gateway.close()


def body_of(pki, address="127.0.0.1:1", listen="127.0.0.1:0", **route):
    return listener_table(route_table(pki, **route), listen=[listen]) + pool_table(pki, [address])


def test_status_drain_and_stop_of_a_running_relay(start, pki, simple):
    gateway = start(simple, admin={})
    talk(pki, gateway.port())
    status = gateway.command("status")
    assert (status.returncode, status.stderr) == (0, "")
    assert f"pid {gateway.pid}: serving, generation 1" in status.stdout
    assert f"listener https: 127.0.0.1:{gateway.port()}" in status.stdout
    assert f"admin: {gateway.admin_url}" in status.stdout
    for slot, pid in gateway.workers().items():
        assert re.search(
            rf"^worker slot={slot} pid={pid} generation=1 phase=serving connections=\d+ ",
            status.stdout,
            re.MULTILINE,
        )
    assert gateway.command("check").returncode == 0, "the relay's own ports are not in its way"
    assert gateway.command("drain").returncode == 0
    assert gateway.wait() == 0
    for command in ("status", "reload", "drain", "stop"):
        gone = gateway.command(command)
        assert gone.returncode == 69
        (line,) = lines_of(gone)
        assert "no relay answers at" in line
        assert "start it with: relay start" in line
    gateway.start()
    stop = gateway.command("stop")
    assert (stop.returncode, stop.stderr) == (0, "")
    assert gateway.wait() == 0
    assert "Traceback" not in gateway.log()


@pytest.mark.parametrize(
    "arguments",
    [
        ("dance",),
        ("start", "--colour"),
        ("status", "extra"),
        ("start", "--config"),
        ("demo", "--port", "x"),
    ],
)
def test_wrong_usage_is_64_and_points_to_help(arguments):
    done = relay(*arguments)
    assert done.returncode == 64
    (line,) = lines_of(done)
    assert "--help" in line


def test_version_and_help_need_no_configuration():
    version = relay("version")
    assert version.returncode == 0
    assert re.search(r"\d+\.\d+\.\d+", version.stdout)
    shown = relay("--help")
    assert shown.returncode == 0
    assert all(
        command in shown.stdout
        for command in ("start", "check", "status", "reload", "drain", "stop", "demo", "version")
    )


@pytest.mark.parametrize("command", ["start", "check", "status", "reload"])
def test_a_missing_configuration_is_78_and_names_the_files(command, tmp_path):
    done = relay(command, "--config", str(tmp_path / "absent.toml"))
    assert done.returncode == 78
    (line,) = lines_of(done)
    assert f"{tmp_path}/absent.toml" in line
    done = relay(command, cwd=tmp_path)
    assert done.returncode == 78
    (line,) = lines_of(done)
    assert "relay.toml" in line
    assert "/etc/relay/relay.toml" in line


def test_ten_mistakes_print_ten_lines_each_with_its_key(stopped, pki):
    gateway = stopped("")
    gateway.config.write_text(f"""
[relay]
workers = 0
state_dir = "run"
drain_timeout_s = -1
[admin]
listen = "9180"
[log]
level = "loud"
access_rotate_s = 0
[timeouts]
hello = 5
[[listener]]
name = "https"
listen = ["127.0.0.1:https"]
[[listener.route]]
pool = "main"
certificate = "{pki.gateway.certificate}"
private_key = "{pki.gateway.key}"
client_ca = "{pki.ca}"
min_version = "SSLv3"
sni = ["app..example"]
[pool.main]
machine_certificate = "{pki.machine.certificate}"
machine_key = "{pki.machine.key}"
backend_ca = "{pki.ca}"
[[pool.main.backend]]
route = "w,1"
address = "127.0.0.1:1"
""")
    keys = (
        "relay.workers", "relay.drain_timeout_s", "admin.listen", "log.level",
        "log.access_rotate_s", "timeouts.hello", "listener.https.listen[0]",
        "listener.https.route[0].sni", "listener.https.route[0].min_version",
        "pool.main.backend[0].route",
    )  # fmt: skip
    for command in ("check", "start"):
        done = gateway.command(command)
        assert done.returncode == 78
        lines = lines_of(done)
        missing = [key for key in keys if not any(key in line for line in lines)]
        assert missing == [], done.stderr
        assert len(lines) == 10, done.stderr


@pytest.mark.parametrize("command", ["start", "check"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda pki, tmp: {"private_key": pki.client.key}, ("gateway.pem", "key")),
        (lambda pki, tmp: {"files": pki.backend_expired}, ("backend-expired.pem", "expired")),
        (lambda pki, tmp: {"files": pki.client}, ("client.pem", "serverAuth")),
        (lambda pki, tmp: {"certificate": tmp / "absent.pem"}, ("absent.pem",)),
        (lambda pki, tmp: {"client_ca": tmp}, ("{tmp}",)),
        (lambda pki, tmp: {"private_key": pki.gateway.certificate}, ("gateway.pem", "key")),
        (lambda pki, tmp: {"ciphers_tls12": "NONSENSE"}, ("ciphers_tls12",)),
        (lambda pki, tmp: {"groups": "NONSENSE"}, ("groups",)),
        (lambda pki, tmp: {"ciphers_tls12": "DEFAULT@SECLEVEL=0"}, ("ciphers_tls12", "level to 0")),
        (lambda pki, tmp: {"ciphersuites_tls13": "TLS_SHA256_SHA256"}, ("RFC 9150",)),
    ],
    ids=[
        "key of another",
        "expired",
        "wrong purpose",
        "absent",
        "directory",
        "no key in it",
        "ciphers",
        "groups",
        "security level",
        "no encryption",
    ],
)
def test_unfit_material_is_78_with_the_file_and_the_remedy(
    stopped, pki, tmp_path, command, change, said
):
    # What only disables a route is refused by a strict start.
    strict = ["--strict"] if command == "start" and "expired" in said else []
    done = stopped(body_of(pki, **change(pki, tmp_path))).command(command, *strict)
    assert done.returncode == 78, done
    text = done.stdout + "\n".join(line for line in done.stderr.splitlines())
    assert "Traceback" not in text
    for word in said:
        assert word.replace("{tmp}", str(tmp_path)) in text, text
    assert len(text.splitlines()) < 12


def test_weak_ciphers_are_served_with_a_warning(start, pki, echo):
    weak = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-SHA:@SECLEVEL=1"
    body = listener_table(route_table(pki)) + pool_table(pki, [echo.address], ciphers_tls12=weak)
    gateway = start(body)
    talk(pki, gateway.port())
    check = gateway.command("check")
    assert check.returncode == 0
    for text in (check.stdout, gateway.log()):
        for said in (
            "security level to 1",
            "SHA-1, which only clients from before 2013 need: ECDHE-RSA-AES128-SHA",
        ):
            (line,) = [line for line in text.splitlines() if said in line]
            assert "pool.main.ciphers_tls12" in line
            assert "warning" in line.lower()


@pytest.mark.parametrize("command", ["start", "check"])
@pytest.mark.parametrize(
    ("log", "said"),
    [
        ({"access_format": "%t %Q"}, "log.access_format: '%Q' is not supported"),
        (
            {"access": "/no/such/directory/access.log"},
            "log.access: the directory /no/such/directory does not exist",
        ),
        ({"access": "/"}, "log.access: / is a directory"),
    ],
    ids=["format", "directory", "no file"],
)
def test_an_access_log_that_cannot_be_written_is_78(stopped, pki, command, log, said):
    done = stopped(body_of(pki), log=log).command(command)
    assert done.returncode == 78
    assert any(said in line for line in lines_of(done)), done.stderr


@pytest.mark.skipif(AS_ROOT, reason="root reads everything")
def test_an_unreadable_key_is_78_and_named(stopped, pki, tmp_path):
    key = tmp_path / "secret.key"
    key.write_bytes(pki.gateway.key.read_bytes())
    key.chmod(0)
    done = stopped(body_of(pki, private_key=key)).command("start")
    assert done.returncode == 78
    assert any("secret.key" in line and "ermission" in line for line in lines_of(done))


@pytest.mark.skipif(not AS_ROOT, reason="needs root, to become another user")
def test_an_unknown_user_is_71(stopped, pki):
    done = stopped(body_of(pki), relay={"user": "no-such-user"}).command("start")
    assert done.returncode == 71
    (line,) = lines_of(done)
    assert "no-such-user" in line
    assert "useradd" in line


def test_a_port_in_use_is_71_and_its_user_is_named(stopped, pki):
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        done = stopped(body_of(pki, listen=address)).command("start")
    assert done.returncode == 71
    (line,) = lines_of(done)
    assert address in line
    assert f"pid {os.getpid()}" in line


def test_a_state_directory_that_cannot_be_used_is_71(stopped, pki, tmp_path):
    (tmp_path / "file").write_text("")
    done = stopped(body_of(pki), relay={"state_dir": tmp_path / "file" / "run"}).command("start")
    assert done.returncode == 71
    (line,) = lines_of(done)
    assert str(tmp_path / "file" / "run") in line
    assert "state_dir" in line


def test_a_second_supervisor_on_a_state_directory_is_71(start, pki, simple):
    gateway = start(simple)
    done = gateway.command("start")
    assert done.returncode == 71
    (line,) = lines_of(done)
    assert f"pid {gateway.pid}" in line
    assert gateway.endpoints["supervisor"]["pid"] == gateway.pid
    assert talk(pki, gateway.port()) == b"hello"
    assert gateway.command("status").returncode == 0
