"""`relay init`: the files that it writes work, and it overwrites nothing."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shutil
import subprocess
import sys
import time

import pytest

from tests.support.client import talk
from tests.support.gateway import PATIENCE_S, ROOT, Gateway
from tests.support.programs import run

FILES = ("relay.toml", "relay.service")
CTRL_C = "\x03"


@pytest.fixture
def flags(pki, echo):
    """What the command needs to know, as flags."""
    return [
        "--certificate", str(pki.gateway.certificate), "--key", str(pki.gateway.key),
        "--client-ca", str(pki.ca), "--machine-certificate", str(pki.machine.certificate),
        "--machine-key", str(pki.machine.key), "--backend", f"w1={echo.address}",
        "--backend-name", "backend.example.com", "--admin", "127.0.0.1:0",
    ]  # fmt: skip


def init(*arguments, cwd=None, **more):
    return subprocess.run(
        [sys.executable, "-m", "relay", "init", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **more,
    )


def test_a_relay_started_from_the_files_serves(flags, pki, short_path):
    output = short_path / "out"
    done = init(
        "--name", output.parent.name, "--listen", "127.0.0.1:0", "--output", str(output), *flags
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"wrote {output}/relay.toml\nwrote {output}/relay.service\n")
    assert f"{output}/relay.toml: ok\n" in done.stdout
    assert sorted(file.name for file in output.iterdir()) == sorted(FILES)
    gateway = Gateway("")
    try:
        text = (output / "relay.toml").read_text()
        state_dir = f'state_dir = "{gateway.state_dir}"'
        lines = [state_dir if line.startswith("state_dir") else line for line in text.splitlines()]
        gateway.config.write_text("\n".join(lines))
        assert gateway.command("check").returncode == 0
        gateway.start()
        assert talk(pki, gateway.port()) == b"hello"
        assert gateway.stop() == 0
    finally:
        gateway.close()


def test_the_unit_runs_this_relay_with_this_configuration(flags, short_path):
    assert init("--output", str(short_path), *flags).returncode == 0
    unit = (short_path / "relay.service").read_text()
    assert f"start --config {short_path}/relay.toml\n" in unit
    assert f"reload --config {short_path}/relay.toml\n" in unit
    assert f"ExecPaths=-{sys.prefix}\n" in unit
    for line in (ROOT / "systemd" / "relay.service").read_text().splitlines():
        if line.startswith(
            ("Type=", "Watchdog", "NoNewPriv", "KillMode", "SystemCall", "WantedBy")
        ):
            assert f"\n{line}\n" in unit
    verified = run("systemd-analyze", "verify", "--man=no", short_path / "relay.service")
    assert verified.returncode == 0, verified.stderr


@pytest.mark.parametrize("present", FILES)
def test_nothing_is_overwritten_without_force(flags, tmp_path, present):
    (tmp_path / present).write_text("mine")
    done = init("--output", str(tmp_path), *flags)
    assert done.returncode == 64
    assert f"{tmp_path}/{present} exists; --force replaces" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == [present]
    assert (tmp_path / present).read_text() == "mine"
    assert init("--force", "--output", str(tmp_path), *flags).returncode == 0
    assert (tmp_path / present).read_text() != "mine"


def test_a_link_to_nowhere_is_not_followed(flags, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "relay.toml").symlink_to(tmp_path / "elsewhere")
    assert init("--output", str(tmp_path / "out"), *flags).returncode == 64
    assert not (tmp_path / "elsewhere").exists()


def test_without_a_terminal_it_says_what_is_missing(tmp_path):
    done = init("--backend", "192.0.2.1:443", cwd=tmp_path)
    assert done.returncode == 64
    assert "--certificate and --client-ca must be given" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--listen", "443"], "listener.https.listen[0]"),
        (["--listen", "localhost:443"], "is not an IP address"),
        (["--name", "a b"], "pool"),
        (["--backend", "w 1=192.0.2.2:443"], "pool.app.backend[1].route"),
        (["--backend", "192.0.2.2"], "pool.app.backend[1].address"),
        (["--sni", "a..b"], "listener.https.route[0].sni"),
    ],
)
def test_a_value_that_cannot_be_used_writes_nothing(flags, tmp_path, arguments, said):
    done = init("--output", str(tmp_path / "out"), *flags, *arguments)
    assert done.returncode == 78
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_file_that_does_not_exist_is_named_after_writing(flags, tmp_path):
    flags[1] = str(tmp_path / "absent.pem")
    done = init("--output", str(tmp_path), *flags)
    assert done.returncode == 78
    assert f"{tmp_path}/absent.pem does not exist" in done.stderr
    assert (tmp_path / "relay.toml").exists()
    assert 'certificate = "absent.pem"' in (tmp_path / "relay.toml").read_text()


def test_odd_names_stay_one_value(flags, pki, tmp_path):
    odd = tmp_path / 'a "b" ${c} \\ é%.pem'
    shutil.copy(pki.gateway.certificate, odd)
    flags[1] = str(odd)
    output = tmp_path / 'o "p" %y $Z'
    done = init("--name", "app.example.com", "--output", str(output), *flags)
    assert done.returncode == 0, done.stderr
    unit = (output / "relay.service").read_text()
    assert f'start --config "{tmp_path}/o \\"p\\" %%y $$Z/relay.toml"\n' in unit
    assert f"Documentation=file://{tmp_path}/o%%20%%22p%%22%%20%%25y%%20%%24Z/relay.toml\n" in unit
    assert f"start --config '{output}/relay.toml'\n" in done.stdout


def test_a_directory_that_cannot_be_made_is_71(flags, tmp_path):
    (tmp_path / "file").write_text("")
    done = init("--output", str(tmp_path / "file" / "out"), *flags)
    assert done.returncode == 71
    assert "cannot be written" in done.stderr


def on_a_terminal(directory, answers, *arguments):
    """Run the command on a terminal; returns its exit code and what it showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(directory)
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "relay", "init", *arguments])
    shown = b""
    while b"Name of the pool" not in shown:
        assert select.select([terminal], [], [], 3 * PATIENCE_S)[0], shown
        shown += os.read(terminal, 4096)
    deadline = time.monotonic() + 3 * PATIENCE_S
    os.write(terminal, answers.encode())
    with contextlib.suppress(OSError):  # EIO: that was all
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 4096)
            elif answers == CTRL_C:  # it was just about to read
                os.write(terminal, CTRL_C.encode())
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


def test_on_a_terminal_it_asks(pki, echo, tmp_path):
    answers = [
        "", "127.0.0.1:0", pki.gateway.certificate, pki.gateway.key, pki.ca,
        f"w1={echo.address} 127.0.0.1:9", "backend.example.com", "", pki.machine.certificate,
        pki.machine.key,
    ]  # fmt: skip
    code, shown = on_a_terminal(tmp_path, "".join(f"{each}\n" for each in answers), "--admin", "")
    assert code == 0, shown
    text = (tmp_path / "relay.toml").read_text()
    for part in (
        "[pool.app]",
        f'backend_ca = "{pki.ca}"',
        f'machine_key = "{pki.machine.key}"',
        'route = "w1"',
        'route = "app2"',
        'listen = ["127.0.0.1:0"]',
    ):
        assert part in text


def test_an_interrupted_dialogue_writes_nothing(tmp_path):
    code, _ = on_a_terminal(tmp_path, CTRL_C)
    assert code == 130
    assert list(tmp_path.iterdir()) == []
