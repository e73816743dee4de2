"""What the demonstration observes: its client's answers, the relay's log and metrics.

Never: changes the lab.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from relay.admin.metrics import parse_metrics
from relay.demo.lab import NAME, TIMEOUT_S, Lab

T = TypeVar("T")


class StepError(Exception):
    """A step could not observe what it needs."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The backend's answer, its lines by key, or the text of the refusal.

    `log_begin` is where the access log ended before the connection. Lines before that
    may have the same client address and port.
    """

    client: str
    log_begin: int
    lines: dict[str, str]
    refused: str = ""

    @property
    def backend(self) -> str:
        """The backend that answered, as it names itself, or ""."""
        return self.lines.get("backend", "")


class Client:
    """Makes requests to a lab's relay and finds what the relay recorded of them."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._log = lab.directory / "access.log"
        self.connections = 0

    def ask(self, certificate: str = "", *, name: str = NAME, source: str = "127.0.0.1") -> Answer:
        """Make one request over a new connection, with a certificate by its file name.

        `source` is the client's address; it must be a loopback address.
        """
        directory = self._lab.directory
        context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
        if certificate:
            context.load_cert_chain(
                directory / f"{certificate}.pem", directory / f"{certificate}.key"
            )
        self.connections += 1
        begin = self._read_log().rfind(b"\n") + 1
        address = ("127.0.0.1", self._lab.port)
        with socket.create_connection(address, TIMEOUT_S, (source, 0)) as raw:
            client = f"{source}:{raw.getsockname()[1]}"
            try:
                # In TLS 1.3 a refused client sees its handshake succeed. The alert
                # arrives at its first read.
                with context.wrap_socket(raw, server_hostname=name) as tls:
                    connection = http.client.HTTPConnection(name)
                    connection.sock = tls
                    connection.request("GET", "/")
                    body = connection.getresponse().read().decode()
                    with suppress(OSError):
                        tls.unwrap()  # without close_notify the relay logs a truncated session
            except ssl.SSLError as error:
                refused = (error.reason or str(error)).replace("_", " ").lower()
                return Answer(client, begin, {}, refused)
            except (OSError, http.client.HTTPException) as error:
                return Answer(client, begin, {}, str(error) or type(error).__name__)
        return Answer(
            client,
            begin,
            {key: value for key, _, value in (line.partition(": ") for line in body.splitlines())},
        )

    def logged(self, answer: Answer) -> dict[str, Any]:
        """The relay's access-log line about a connection. Raises StepError."""
        return wait_until(
            f"the access log has the connection of {answer.client}",
            lambda: self._find(answer),
        )

    def _find(self, answer: Answer) -> dict[str, Any] | None:
        lines = self._read_log()[answer.log_begin :].splitlines(keepends=True)
        found: Iterator[dict[str, Any]] = (
            json.loads(line) for line in lines if line.endswith(b"\n")
        )
        return next((line for line in found if line["client"] == answer.client), None)

    def _read_log(self) -> bytes:
        return self._log.read_bytes() if self._log.exists() else b""

    def metrics(self) -> Mapping[str, float]:
        """The relay's metrics now, by name and labels as Prometheus writes them."""
        url = f"http://{self._lab.admin}/metrics"
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            text = response.read().decode()
        return parse_metrics(text)


def wait_until(what: str, condition: Callable[[], T | None]) -> T:
    """The first true value of `condition`. Raises StepError after TIMEOUT_S."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise StepError(f"waited {TIMEOUT_S:g} s until {what}, but it did not happen")
        time.sleep(0.02)
