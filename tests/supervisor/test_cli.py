"""The command line: exit codes, one line per error, and never a traceback."""

from __future__ import annotations

import contextlib
import os
import pty
import socket
import subprocess
import sys

import pytest

import relay as package
from relay.shared.password import verify
from tests.support.configs import write_body
from tests.support.gateway import ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*arguments, cwd=None, **more):
    return subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **more,
    )


def test_version_says_what_runs():
    said = run("version")
    assert said.returncode == 0
    assert said.stdout.startswith(f"relay {package.__version__}, Python 3.")
    assert "pyOpenSSL" in said.stdout
    assert "OpenSSL " in said.stdout


def test_help_lists_the_commands():
    said = run("--help")
    assert said.returncode == 0
    for command in ("start", "check", "status", "reload", "drain", "stop", "demo", "version"):
        assert f"\n  {command} " in said.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["dance"],
        ["start", "--what"],
        ["start", "surplus"],
        ["demo", "--port", "99999"],
        ["status", "--config"],
    ],
)
def test_wrong_usage_is_one_line_and_64(arguments):
    said = run(*arguments)
    assert said.returncode == 64
    assert said.stdout == ""
    assert said.stderr.startswith("relay: ")
    assert said.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["status", "reload", "drain", "stop"])
def test_without_a_relay_there_is_69_and_where_it_was_looked_for(relay, command):
    gateway = relay(start=False)
    said = gateway.command(command)
    assert said.returncode == 69
    assert said.stderr == (
        f"relay: no relay answers at {gateway.state_dir}/control.sock: it is not running,"
        " or it uses another state_dir; start it with: relay start\n"
    )


@pytest.mark.parametrize("command", ["start", "check", "status"])
def test_without_a_configuration_there_is_78(tmp_path, command):
    said = run(command, "--config", str(tmp_path / "absent.toml"))
    assert said.returncode == 78
    assert said.stderr == (
        f"relay: {tmp_path}/absent.toml: does not exist;"
        " create it, or name another one with --config FILE\n"
    )


def test_ten_mistakes_are_ten_lines(tmp_path, body):
    (tmp_path / "relay.toml").write_text(
        '[relay]\nworkers = 0\nstate_dirr = "x"\ndrain_timeout_s = -1\n'
        '[limits]\nconnections = "many"\n[log]\nlevel = "loud"\n'
        "[timeouts]\nidle_s = 0\nhello = 1\n"
        + body.replace('pool = "echo"', 'pool = "ehco"')
        .replace('route = "w1"', 'route = "w,1"')
        .replace('listen = ["127.0.0.1:0"]', 'listen = ["127.0.0.1"]')
    )
    for command in ("start", "check"):
        said = run(command, cwd=tmp_path)
        assert said.returncode == 78
        lines = said.stderr.splitlines()
        assert len(lines) >= 10, said.stderr
        assert all(line.startswith("relay: ") for line in lines)


def test_check_shows_every_certificate_and_says_ok(relay, pki):
    gateway = relay(start=False)
    said = gateway.command("check")
    assert (said.returncode, said.stderr) == (0, "")
    for file in (pki.gateway.certificate, pki.machine.certificate, pki.ca):
        assert any(
            line.startswith("info ") and str(file) in line for line in said.stdout.splitlines()
        )
    assert said.stdout.endswith(f"{gateway.config}: ok\n")


def test_check_says_of_every_finding_which_key_it_is_about(relay, pki, body):
    absent = "/no/such/file.pem"
    gateway = relay(
        body.replace(
            f'private_key = "{pki.gateway.key}"', f'private_key = "{pki.client.key}"'
        ).replace(f'backend_ca = "{pki.ca}"', f'backend_ca = "{absent}"'),
        start=False,
    )
    said = gateway.command("check")
    assert said.returncode == 78
    assert (
        f"relay: {gateway.place('backend_ca')}: pool.echo.backend_ca: {absent} does not exist;"
        " create it, or correct the path (relative paths start at the configuration file)"
    ) in said.stderr.splitlines()
    assert (
        f"relay: {gateway.place('certificate')}: listener.https.route[0].certificate:"
        f" the private key in {pki.client.key} does not belong to the certificate"
    ) in said.stderr
    assert (
        f"info {gateway.place('machine_certificate')}: pool.echo.machine_certificate:"
        f" {pki.machine.certificate} (CN=relay machine): valid until "
    ) in said.stdout


def test_a_missing_file_does_not_hide_other_problems(relay, pki, body):
    bad = body.replace(
        f'client_ca = "{pki.ca}"',
        'client_ca = "/absent.pem"\nciphers_tls12 = "NONSENSE"\ngroups = "NONSENSE"',
    )
    bad = bad.replace(
        f'machine_certificate = "{pki.machine.certificate}"',
        'machine_certificate = "/absent.pem"\nciphersuites_tls13 = "NONSENSE"',
    )
    said = relay(bad, start=False).command("check")
    assert said.returncode == 78
    refusals = [line.split(": ")[2] for line in said.stderr.splitlines()[:-1]]
    assert sorted(refusals) == [
        "listener.https.route[0].ciphers_tls12",
        "listener.https.route[0].groups",
        "pool.echo.ciphersuites_tls13",
        "pool.echo.machine_certificate, listener.https.route[0].client_ca",
    ]
    assert said.stderr.endswith("relay.toml: 4 problems; the relay would not start\n")


def test_check_tells_what_is_disabled_from_what_is_refused(relay, body, pki):
    expired = body.replace(
        f'machine_certificate = "{pki.machine.certificate}"',
        f'machine_certificate = "{pki.client_expired.certificate}"',
    ).replace(f'machine_key = "{pki.machine.key}"', f'machine_key = "{pki.client_expired.key}"')
    assert expired != body
    said = relay(expired, start=False).command("check")
    assert said.returncode == 78
    assert said.stderr.endswith(
        "1 problem; the relay would start with a part of it disabled, but not with --strict\n"
    )


@pytest.mark.parametrize("arguments", [(), ("backend",)], ids=str)
def test_without_a_command_the_help_is_shown_as_it_is(arguments):
    said = run(*arguments)
    assert said.returncode == 64
    assert said.stderr.startswith("Usage: relay")
    assert len(said.stderr.splitlines()) > 8


def test_a_password_is_read_from_stdin_where_that_is_no_terminal():
    said = run("password", input="corréct horse\n")
    assert (said.returncode, said.stderr) == (0, "")
    assert verify("corréct horse", said.stdout.strip())
    nothing = run("password", input="")
    assert (nothing.returncode, nothing.stdout) == (64, "")
    assert "stdin has no password" in nothing.stderr


def test_check_shows_a_terminal_the_same_lines_in_colour(relay, pki, body):
    gateway = relay(
        body.replace(f'backend_ca = "{pki.ca}"', 'backend_ca = "/absent.pem"'), start=False
    )
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        command = [sys.executable, "-m", "relay", "check", "--config", str(gateway.config)]
        check = subprocess.Popen(
            command,
            env={**ENVIRONMENT, "COLUMNS": "240", "TERM": "xterm"},
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: that was all
            while more := screen.read(65536):
                shown += more
    assert check.wait(60) == 78
    assert f"{gateway.place('backend_ca')}: pool.echo.backend_ca: /absent.pem".encode() in shown
    assert f"\x1b[32minfo\x1b[0m {gateway.place('certificate')}: ".encode() in shown


def test_check_accepts_the_ports_of_the_running_relay(relay, body):
    gateway = relay(admin={})
    port = gateway.port()
    gateway.write(
        body.replace("127.0.0.1:0", f"127.0.0.1:{port}"),
        admin={"listen": gateway.endpoints["admin"]},
    )
    said = gateway.command("check")
    assert (said.returncode, said.stderr) == (0, "")


@pytest.mark.parametrize(
    ("before", "after"), [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1"), ("[::1]", "[::]")]
)
def test_check_and_reload_accept_a_wider_or_narrower_address(relay, pki, echo, before, after):
    gateway = relay(write_body(pki, echo, (f"{before}:0",)))
    port = gateway.port()
    gateway.write(write_body(pki, echo, (f"{after}:{port}",)))
    said = gateway.command("check")
    assert (said.returncode, said.stderr) == (0, "")
    assert gateway.command("reload").returncode == 0
    assert gateway.endpoints["listeners"]["https"] == [f"{after}:{port}"]


def test_check_reports_a_port_that_another_program_uses(relay, pki, echo):
    gateway = relay()
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        address = f"127.0.0.1:{stranger.getsockname()[1]}"
        gateway.write(write_body(pki, echo, (f"127.0.0.1:{gateway.port()}", address)))
        said = gateway.command("check")
    assert said.returncode == 78
    assert f"cannot listen on {address}: Address already in use (by " in said.stderr
    assert f"pid {os.getpid()}" in said.stderr


def test_check_warns_if_every_peer_may_send_a_proxy_header(relay, body):
    """Such a listener takes any address that any client claims."""
    gateway = relay()
    line = 'accept_proxy = { from = ["192.0.2.1", "0.0.0.0/0"] }'
    gateway.write(body.replace("[[listener]]", f"[[listener]]\n{line}", 1))
    checked = gateway.command("check")
    assert (checked.returncode, checked.stderr) == (0, "")
    (warning,) = [line for line in checked.stdout.splitlines() if line.startswith("warning ")]
    assert ".accept_proxy.from[1]: 0.0.0.0/0 is every address" in warning


def test_the_port_of_the_admin_process_needs_a_restart(relay, body):
    gateway = relay(admin={})
    held = gateway.endpoints["admin"]
    wanted = held.replace("127.0.0.1", "0.0.0.0")
    gateway.write(body, admin={"listen": wanted})
    refused = gateway.command("reload")
    assert refused.returncode == 71
    assert refused.stderr == (
        f"relay: {gateway.place('listen')}: admin.listen: cannot listen on {wanted} while the"
        " relay's own admin process"
        f" listens on {held}; choose another port, or restart the relay\n"
    )
    checked = gateway.command("check")
    assert (checked.returncode, checked.stderr) == (0, ""), "start would do it"
    (line,) = [line for line in checked.stdout.splitlines() if line.startswith("warning ")]
    assert line == (
        f"warning {gateway.place('listen')}: admin.listen: a reload cannot listen on {wanted}"
        f" while the running relay's own admin process listens on {held}; choose another port,"
        " or restart the relay"
    )


def test_a_port_that_the_relay_itself_holds_is_reported_as_such(relay, pki, echo):
    gateway = relay(admin={})
    held, port = gateway.endpoints["admin"], gateway.port()
    for listen, admin in ((held, "127.0.0.1:0"), ("127.0.0.1:0", f"127.0.0.1:{port}")):
        gateway.write(
            write_body(pki, echo, (listen,)).replace('"https"', '"other"'), admin={"listen": admin}
        )
        refused = gateway.command("reload")
        assert refused.returncode == 71
        assert (
            "Address already in use (by this relay itself);"
            " choose another port, or restart the relay" in refused.stderr
        )
        checked = gateway.command("check")
        assert checked.returncode == 0
        assert "choose another port, or restart the relay" in checked.stdout


def test_a_reload_keeps_the_admin_socket_on_the_same_port(relay, body):
    gateway = relay(admin={})
    held = gateway.endpoints["admin"]
    gateway.write(body, admin={"listen": held})
    assert gateway.command("reload").returncode == 0
    assert gateway.endpoints["admin"] == held
    gateway.write(body, admin={"listen": "127.0.0.1:0"})
    assert gateway.command("reload").returncode == 0
    assert gateway.endpoints["admin"] != held


def test_status_and_stop_work_with_a_broken_file(relay, body):
    gateway = relay()
    gateway.write(body + "\n[mistake]\n")
    said = gateway.command("status")
    assert said.returncode == 0
    assert f"pid {gateway.pid}: serving, generation 1" in said.stdout
    assert gateway.command("stop").returncode == 0
    assert gateway.wait() == 0


def test_a_reader_that_goes_away_gets_no_traceback(relay):
    gateway = relay()
    read, write = os.pipe()
    os.close(read)
    said = subprocess.run(
        [sys.executable, "-m", "relay", "status", "--config", str(gateway.config)],
        env=ENVIRONMENT,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert (said.returncode, said.stderr) == (1, "")


@pytest.mark.parametrize("command", [["status", "--help"], ["version"], ["check", "--help"]])
def test_quick_commands_do_not_load_what_they_do_not_need(command):
    program = """
import sys
sys.argv[0] = "relay"
from relay.cli.main import main
main(sys.argv[1:])
heavy = ("starlette", "uvicorn", "pydantic", "rich", "OpenSSL")
print(sorted(name for name in heavy if name in sys.modules))
"""
    said = subprocess.run(
        [sys.executable, "-c", program, *command],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert said.stdout.splitlines()[-1] == ("['OpenSSL']" if command == ["version"] else "[]")
