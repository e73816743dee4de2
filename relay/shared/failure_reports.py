"""What workers tell the supervisor while a canary runs: examples of what failed.

The counters say how many clients were refused, and for which reason. An example names
one of them. It is a datagram, on the channel that also has the
`relay.shared.client_tallies`. The kernel keeps a few; when there is no room, the
example is lost.

The receiver trusts nothing of it: a worker that an attacker controls could send
anything.

Never: blocks.
"""

from __future__ import annotations

import contextlib
import json
import socket
from dataclasses import asdict, dataclass, fields
from typing import Any

from relay.core.canary import Part
from relay.errors import Reason
from relay.shared.client_tallies import Tally, parse_tally
from relay.shared.datagram_channel import DatagramChannel

MOST_BYTES = 8192
MOST_CHARACTERS = 300  # of one field


@dataclass(frozen=True, slots=True)
class FailureReport:
    """One failure. `who` is the certificate or the backend, `address` the client's."""

    part: str  # of `relay.core.canary.Part`
    reason: str
    who: str = ""
    address: str = ""
    detail: str = ""

    def __str__(self) -> str:
        where = f" at {self.address}" if self.address else ""
        return (self.who or "a client") + where + (f" ({self.detail})" if self.detail else "")


_PARTS, _REASONS = frozenset(map(str, Part)), frozenset(map(str, Reason))
_FIELDS = tuple(field.name for field in fields(FailureReport))


class FailureChannel(DatagramChannel):
    """From the canary, or from the workers beside it, to the supervisor."""

    def receive(self, most: int) -> list[FailureReport | Tally]:
        """The messages that have come, at most this many, but none that is damaged."""
        found: list[FailureReport | Tally] = []
        for _ in range(most):
            try:
                data = self._reader.recv(MOST_BYTES)
            except OSError:
                break
            message = _parse(data)
            if message is not None:
                found.append(message)
        return found


def send_report(sock: socket.socket, report: FailureReport) -> None:
    """Send a report, or lose it if there is no room."""
    cut = {name: text[:MOST_CHARACTERS] for name, text in asdict(report).items()}
    with contextlib.suppress(OSError):
        sock.send(json.dumps(cut, ensure_ascii=False).encode(errors="replace"))


def _parse(data: bytes) -> FailureReport | Tally | None:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return parse_report(message) or parse_tally(message)


def parse_report(message: Any) -> FailureReport | None:
    """A report as JSON has it; None if it is not one."""
    try:
        texts = {name: message[name] for name in _FIELDS}
    except (TypeError, LookupError):
        return None
    if not all(isinstance(text, str) for text in texts.values()):
        return None
    if texts["part"] not in _PARTS or texts["reason"] not in _REASONS:
        return None
    return FailureReport(**{name: _printable(text) for name, text in texts.items()})


def _printable(text: str) -> str:
    """One line without control characters, because it goes to logs and terminals."""
    return "".join(each if each.isprintable() else "?" for each in text[:MOST_CHARACTERS])
