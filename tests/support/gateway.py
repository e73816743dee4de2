"""A real relay for a test.

It writes the configuration, starts `relay start` as a process of its own, waits until
it accepts, and always ends it.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil

from tests.support.warm import WarmProcess, starter

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
# A loaded machine must not fail a test. A test that passes does not wait this long.
PATIENCE_S = 40.0
UNUSUAL = {"OPENSSL_CONF", "COVERAGE_DIRECTORY"}
# What `warm_server` can run.
FORKED = {("relay",), ("tests.support.stub_relay",), ("tests.support.strict_relay",)}
# Variables that no module reads when it is imported.
HARMLESS = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "STUB_RULES"}


def wait_until(
    what: str,
    condition: Callable[[], T],
    patience_s: float = PATIENCE_S,
    detail: Callable[[], str] = str,
) -> T:
    """The first true value of `condition`.

    Fails the test with `what` and `detail()` when it has no true value in time.
    """
    deadline = time.monotonic() + patience_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience_s:g} s in vain until {what}\n{detail()}")
        time.sleep(0.01)


def render_value(value: object) -> str:
    """A TOML value. JSON strings, numbers, booleans and arrays are valid TOML."""
    if isinstance(value, Path):
        return json.dumps(str(value))
    if isinstance(value, dict):
        return (
            "{ " + ", ".join(f"{key} = {render_value(item)}" for key, item in value.items()) + " }"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(render_value, value)) + "]"
    return json.dumps(value)


def render_toml(sections: dict[str, dict[str, Any]]) -> str:
    """`{"relay": {"workers": 2}, …}` as TOML tables."""
    lines: list[str] = []
    for name, keys in sections.items():
        lines += [
            f"[{name}]",
            *(f"{key} = {render_value(value)}" for key, value in keys.items()),
            "",
        ]
    return "\n".join(lines) + "\n"


class Gateway:
    """One relay; a context manager.

    `body` is the TOML of listeners and pools, keyword arguments are the other tables:
    `Gateway(body, relay={"workers": 1}, timeouts={"hello_s": 1})`. Defaults: 2 workers,
    `state_dir` and the access log in a short temporary directory, and the user that
    runs the test. With `admin`, which may be `{}`, there is an admin process, on a free
    port. It takes a third of the CPU time of a start.
    """

    def __init__(
        self,
        body: str,
        *,
        module: Sequence[str] = ("relay",),
        env: dict[str, str] | None = None,
        **sections: dict[str, Any],
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="relay-"))
        self.config = self.directory / "relay.toml"
        self.state_dir = self.directory / "run"
        self.log_file = self.directory / "stderr.log"
        self.access_file = self.directory / "access.log"
        self.module = tuple(module)
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONDEVMODE": "",
            **(env or {}),
        }
        # OpenSSL reads some variables when it is loaded.
        self.may_be_warm = set(env or {}) <= HARMLESS and not UNUSUAL & set(os.environ)
        self._usual_environment = dict(self.environment)
        self.sections = sections
        self.write(body)
        self.process: subprocess.Popen[bytes] | WarmProcess | None = None

    def write(self, body: str, **sections: dict[str, Any]) -> None:
        """Write the configuration file, which takes effect at start or reload.

        Tables given here replace keys given before.
        """
        admin = "admin" in self.sections or "admin" in sections
        tables: dict[str, dict[str, Any]] = {
            "relay": {
                "workers": 2,
                "state_dir": self.state_dir,
                "drain_timeout_s": 10,
                "user": getpass.getuser(),
            },
            "admin": {"listen": "127.0.0.1:0" if admin else ""},
            "log": {"access": self.access_file},
        }
        for given in (self.sections, sections):
            for name, keys in given.items():
                tables[name] = {**tables.get(name, {}), **keys}
        self.config.write_text(render_toml(tables) + body)

    def change_a_setting(self) -> None:
        """Change a setting by nearly nothing, so that a reload makes a generation."""
        text = self.config.read_text()
        before = re.search(r"^watch_s = (\S+)\n", text, re.MULTILINE)
        # Once an hour is nearly never.
        watch_s = (float(before[1]) or 3600) + 0.001 if before else 2.001
        text = text.replace(before[0], "") if before else text
        self.config.write_text(text.replace("[relay]\n", f"[relay]\nwatch_s = {watch_s}\n", 1))

    def place(self, key: str) -> str:
        """The file and line of the first key of this name, as messages show it."""
        lines = self.config.read_text().splitlines()
        number = next(i for i, line in enumerate(lines, 1) if line.startswith(f"{key} = "))
        return f"{self.config}:{number}"

    # Life.

    @property
    def start_command(self) -> list[str]:
        """The command that starts this relay."""
        return [sys.executable, "-m", *self.module, "start", "--config", str(self.config)]

    @property
    def _is_warm(self) -> bool:
        """Whether it is forked: not if a test has changed what Python reads."""
        usual = self.module in FORKED and self.environment == self._usual_environment
        return self.may_be_warm and usual

    def launch(self, *wrapper: str, pass_fds: Sequence[int] = ()) -> Self:
        """Start the process, by the command `wrapper` if given, and return at once."""
        with self.log_file.open("ab") as log:
            if self._is_warm and not wrapper and not pass_fds:
                self.process = starter().start(
                    *self.module,
                    self.start_command[3:],
                    cwd=self.directory,
                    env=self.environment,
                    out=log,
                    err=log,
                )
                return self
            self.process = subprocess.Popen(
                [*wrapper, *self.start_command],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=pass_fds,
            )
        return self

    def start(self) -> Self:
        """Start the process and return when it accepts."""
        self.launch()
        return self.wait_until_it_accepts()

    def wait_until_it_accepts(self, patience_s: float = PATIENCE_S) -> Self:
        """Return when it accepts."""
        wait_until("the relay accepts", self._accepts, patience_s, detail=self.log)
        return self

    def _accepts(self) -> bool:
        code = self.running.poll()
        assert code is None, f"the relay ended with {code} instead of accepting\n{self.log()}"
        # A killed relay leaves its file behind, and the next one removes it.
        try:
            return self.endpoints["supervisor"]["pid"] == self.pid
        except FileNotFoundError:
            return False

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        """Wait until it has ended; returns its exit code."""
        try:
            return self.running.wait(patience_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"the relay did not end within {patience_s:g} s\n{self.log()}"
            ) from None

    def stop(self) -> int:
        """Drain and end the relay; returns its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL the supervisor and everything it started.

        Safe to call at any time.
        """
        if self.process is None:
            return
        # Only root sees the directory of a process that is not dumpable.
        children = []
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if self.process.poll() is None:
                children = psutil.Process(self.pid).children(recursive=True)
        # The supervisor first: it would replace its workers.
        self.process.kill()
        self.process.wait(PATIENCE_S)
        for pid in self._pids_left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()

    def _end_measured(self) -> None:
        """Let every process write what coverage.py measured, which SIGKILL prevents."""
        if self.process is None or self.process.poll() is not None:
            return
        for patience_s in (2, 5):
            self.process.terminate()  # the second signal ends the drain
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience_s)
                return

    def _pids_left(self) -> list[int]:
        # Children of a dead supervisor belong to init. They still have its working
        # directory.
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            # It ended meanwhile, or belongs to another user.
            with contextlib.suppress(OSError):
                if (process / "cwd").readlink() == self.directory:
                    found.append(int(process.name))
        return [pid for pid in found if pid != os.getpid()]

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            print(self.log())
        self.close()

    def close(self) -> None:
        """End it in whatever state it is, and remove its directory."""
        if "COVERAGE_DIRECTORY" in os.environ:
            self._end_measured()
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    # What a test asks.

    @property
    def running(self) -> subprocess.Popen[bytes] | WarmProcess:
        """The supervisor's process."""
        assert self.process is not None, "the relay was not started"
        return self.process

    @property
    def pid(self) -> int:
        """The supervisor's pid."""
        return self.running.pid

    @property
    def endpoints(self) -> dict[str, Any]:
        """`endpoints.json` as it is now."""
        loaded: dict[str, Any] = json.loads((self.state_dir / "endpoints.json").read_text())
        return loaded

    def children(self, name: str) -> list[psutil.Process]:
        """The supervisor's children with this process name or word of the command line.

        A child gets its name some milliseconds after its start.
        """
        found = []
        for child in psutil.Process(self.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                if name == child.name() or name in child.cmdline():
                    found.append(child)
        return found

    def child(self, name: str) -> psutil.Process:
        """The only child with this name, as soon as there is one. See `children`."""
        [found] = wait_until(
            f"there is a process {name}", lambda: self.children(name), detail=self.log
        )
        return found

    def address(self, listener: str = "https", index: int = 0) -> tuple[str, int]:
        """Host and port of a listener's address."""
        host, _, port = self.endpoints["listeners"][listener][index].rpartition(":")
        return host.strip("[]"), int(port)

    def port(self, listener: str = "https", index: int = 0) -> int:
        """Port of a listener's address."""
        return self.address(listener, index)[1]

    @property
    def admin_url(self) -> str:
        """`http://host:port` of the admin process."""
        return f"http://{self.endpoints['admin']}"

    def workers(self) -> dict[int, int]:
        """Slot -> pid of the serving workers, from endpoints.json."""
        return {worker["slot"]: worker["pid"] for worker in self.endpoints["workers"]}

    def log(self) -> str:
        """The relay's own messages and stdout so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def access(self) -> list[dict[str, Any]]:
        """The access log's whole lines so far, parsed as JSON."""
        return list(self._access_lines())

    def _access_lines(self) -> Iterator[dict[str, Any]]:
        if not self.access_file.exists():
            return
        for line in self.access_file.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)

    def wait_for_access(self, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """At least `count` access-log lines whose fields have these values."""

        def found() -> list[dict[str, Any]]:
            matching = [
                line
                for line in self.access()
                if all(line.get(key) == value for key, value in fields.items())
            ]
            return matching if len(matching) >= count else []

        return wait_until(
            f"{count} access-log lines have {fields}",
            found,
            detail=lambda: "\n".join(map(str, self.access())) + "\n" + self.log(),
        )

    def wait_for_log(self, text: str, count: int = 1) -> str:
        """Wait until the relay's own log holds `text` at least `count` times.

        Returns the whole log.
        """
        return wait_until(
            f"the log says {text!r}",
            lambda: self.log() if self.log().count(text) >= count else "",
            detail=self.log,
        )

    def wait_for_workers(self, condition: Callable[[dict[int, int]], object]) -> dict[int, int]:
        """Wait until `condition` holds for slot -> pid of the serving workers."""
        wait_until(
            "the workers are as expected",
            lambda: bool(condition(self.workers())),
            detail=lambda: f"{self.workers()}\n{self.log()}",
        )
        return self.workers()

    # What a test does.

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor."""
        self.running.send_signal(number)

    def command(
        self, *arguments: str, patience_s: float = PATIENCE_S
    ) -> subprocess.CompletedProcess[str]:
        """Run `relay ARGUMENTS --config …` until it ends."""
        cwd, env = tempfile.gettempdir(), self.environment
        all_arguments = [*arguments, "--config", str(self.config)]
        if self._is_warm:
            return starter().run(*self.module, all_arguments, cwd=cwd, env=env, timeout=patience_s)
        return subprocess.run(
            [sys.executable, "-m", *self.module, *all_arguments],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patience_s,
            check=False,
        )
