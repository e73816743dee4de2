import io
import os
import shlex
import signal
import socket
import subprocess
import sys

import psutil
import pytest
from rich.console import Console

from relay.demo.lab import WORKERS, Lab
from relay.demo.steps import STEPS, run_steps, show_no_certificate, show_request, show_stickiness
from relay.errors import Reason
from relay.remedies import REMEDIES
from tests.support.gateway import PATIENCE_S, ROOT, wait_until
from tests.support.programs import needs
from tests.support.programs import run as run_program


class Demo:
    """`relay demo` as a process whose temporary files are all below one directory."""

    def __init__(self, directory, *arguments):
        self.directory = directory
        self.output = directory.parent / "demo.out"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "relay", "demo", *arguments],
                cwd=directory.parent,
                env={
                    **os.environ,
                    "TMPDIR": str(directory),
                    "PYTHONPATH": str(ROOT),
                    "PYTHONIOENCODING": "utf-8",
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def said(self):
        return self.output.read_text()

    def wait_for(self, text):
        def there():
            said = self.said()
            assert text in said or self.process.poll() is None, said
            return said if text in said else ""

        return wait_until(f"the demonstration says {text!r}", there, detail=self.said)

    def wait(self):
        try:
            return self.process.wait(3 * PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the demonstration did not end\n{self.said()}") from None

    def family(self):
        """Every process that works below the directory, orphans too."""
        return [
            each
            for each in psutil.process_iter(["cwd"])
            if (each.info["cwd"] or "").startswith(str(self.directory))
        ]

    def left(self):
        wait_until(
            "every process of the demonstration has ended",
            lambda: not self.family(),
            detail=lambda: str(self.family()),
        )
        return list(self.directory.iterdir())


@pytest.fixture
def demo(short_path):
    started = []
    directory = short_path / "t"
    directory.mkdir()

    def start(*arguments):
        started.append(Demo(directory, *arguments))
        return started[-1]

    yield start
    for one in started:
        for process in [one.process, *one.family()]:
            process.kill()
        one.process.wait(PATIENCE_S)


def test_once_shows_every_step_and_leaves_nothing_behind(demo):
    run = demo("--once")
    assert run.wait() == 0, run.said()
    said = run.said()
    for number, step in enumerate(STEPS, 1):
        assert f"✔ {number}. {step.__doc__.rstrip('.')}\n" in said
    for words in (
        "no_certificate, inbound",
        "unknown_ca, inbound",
        "backend_wrong_name, outbound side, impostor at",
        "the backend's certificate: subject CN=",
        REMEDIES[Reason.NO_CERTIFICATE],
        "by failover",
    ):
        assert words in said
    assert f"All {len(STEPS)} steps passed." in said
    assert run.left() == []


@needs("curl", "openssl")
def test_it_stays_up_and_the_lines_it_prints_can_be_pasted(demo):
    run = demo()
    said = run.wait_for("Ctrl-C ends everything")
    good, without, foreign, s_client, log, metrics, page = (
        line.strip()
        for line in said.split("Try it yourself")[1].splitlines()
        if line.startswith("    ")
    )

    def paste(line, said=""):
        return run_program(*shlex.split(line), said=said)

    answered = paste(good)
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout.startswith("backend: worker")
    assert "client certificate it saw: CN=demo gateway machine\n" in answered.stdout
    assert paste(without).returncode != 0
    assert paste(foreign).returncode != 0
    assert "Verify return code: 0 (ok)" in paste(s_client, said="GET / HTTP/1.0\r\n\r\n").stdout
    assert '"reason":"unknown_ca"' in paste(log.replace("tail -f", "tail")).stdout
    assert "relay_connections_total" in paste(metrics).stdout
    assert "/balancer-manager" in page

    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 0, run.said()
    assert run.left() == []


def test_terminating_it_cleans_up(demo):
    run = demo()
    run.wait_for("Ctrl-C ends everything")
    run.process.terminate()
    assert run.wait() == 0, run.said()
    assert run.left() == []


def test_interrupting_it_before_its_end_cleans_up(demo):
    run = demo("--once")
    run.wait_for("Making certificates")
    wait_until("a backend runs", run.family)
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130, run.said()
    assert "Traceback" not in run.said()
    assert run.left() == []


def test_a_relay_that_ends_by_itself_fails_the_demonstration(demo):
    run = demo()
    run.wait_for("Ctrl-C ends everything")
    [supervisor] = [
        each for each in psutil.Process(run.process.pid).children() if "start" in each.cmdline()
    ]
    supervisor.kill()
    assert run.wait() == 1, run.said()
    assert "The relay ended with status -9" in run.said()
    assert run.left() == []


@needs("curl")
def test_what_it_keeps_can_be_started_again(demo, stack):
    run = demo("--once", "--keep", "kept")
    assert run.wait() == 0, run.said()
    directory = run.directory.parent / "kept"
    backends, start, ask = (
        line.strip().removesuffix(" &")
        for line in run.said().split("The files stay in")[1].splitlines()
        if line.startswith("    ")
    )
    assert run.left() == []
    assert demo("--once", "--keep", "kept").wait() == 71, "it overwrites nothing"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (run.directory.parent / "kept.out").open("wb") as output:
        for command in (backends, start):
            process = subprocess.Popen(
                shlex.split(command), env=environment, stdout=output, stderr=output
            )
            stack.callback(process.wait, 2 * PATIENCE_S)
            stack.callback(process.terminate)
    answer = wait_until(
        "the kept relay answers",
        lambda: run_program(*shlex.split(ask)).stdout,
        3 * PATIENCE_S,
        detail=(run.directory.parent / "kept.out").read_text,
    )
    assert answer.startswith("backend: worker")
    checked = run_program(
        sys.executable, "-m", "relay", "check", "--config", f"{directory}/relay.toml"
    )
    assert checked.returncode == 0, checked.stderr


def test_a_demonstration_that_fails_keeps_nothing(demo):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        run = demo("--once", "--keep", "kept", "--port", str(taken.getsockname()[1]))
        assert run.wait() == 71, run.said()
    assert not (run.directory.parent / "kept").exists()


def test_a_port_in_use_is_refused_in_words(demo):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = demo("--once", "--port", str(port))
        assert run.wait() == 71, run.said()
    assert f"127.0.0.1:{port}" in run.said()
    assert "Traceback" not in run.said()
    assert run.left() == []


def test_a_step_that_does_not_show_what_it_should_is_named():
    output = io.StringIO()
    with Lab(0) as lab:
        for name in WORKERS:
            lab.kill_backend(name)
        failed = run_steps(
            Console(file=output, soft_wrap=True),
            lab,
            (show_request, show_stickiness, show_no_certificate),
        )
    assert failed == [
        "1. A request with a client certificate is answered",
        "2. The same client stays with its backend, other clients are spread",
    ]
    assert "3. A client without a certificate is refused" in output.getvalue()
