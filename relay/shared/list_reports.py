"""What workers tell the checker: where verified certificates say their lists are.

A report has URLs of revocation lists, and the intermediates of one verified chain. It
is a datagram. The kernel keeps a few; when there is no room, the worker tries again in
a later handshake.

The receiver trusts nothing of it: a worker that an attacker
controls could send anything.

Never: blocks.
"""

from __future__ import annotations

import base64
import binascii
import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from relay.shared.datagram_channel import DatagramChannel

MOST_BYTES = 64 * 1024
_MOST = 64  # URLs or intermediates


@dataclass(frozen=True, slots=True)
class ListReport:
    """URLs of lists, and intermediates (DER) that may have signed them."""

    urls: tuple[str, ...]
    issuers: tuple[bytes, ...] = ()


class ReportChannel(DatagramChannel):
    """From all workers to all checkers."""

    def reader(self) -> socket.socket:
        """The end for a checker."""
        return self._reader.dup()


def send_report(sock: socket.socket, report: ListReport) -> bool:
    """Send a report. False if there is no room for it now."""
    message = {
        "urls": report.urls,
        "issuers": [base64.b64encode(each).decode() for each in report.issuers],
    }
    data = json.dumps(message).encode()
    if len(data) > MOST_BYTES:
        return True  # no CA has such names; it would never fit
    try:
        sock.send(data)
    except OSError:
        return False
    return True


def receive_report(sock: socket.socket) -> ListReport | None:
    """The next report; an empty one if it cannot be read; None if there is none."""
    try:
        data = sock.recv(MOST_BYTES)
    except OSError:
        return None
    return parse_report(data)


def parse_report(data: bytes, most: int = _MOST) -> ListReport:
    """Parse a report, or a file with the same keys. It skips what it cannot read."""
    try:
        found: Any = json.loads(data)
        urls = tuple(each for each in found["urls"] if isinstance(each, str))
        encoded = [each for each in found["issuers"] if isinstance(each, str)]
    except (ValueError, TypeError, LookupError, RecursionError):
        return ListReport(())
    return ListReport(urls[:most], tuple(_decoded(encoded[:most])))


def _decoded(encoded: Iterable[str]) -> Iterable[bytes]:
    for each in encoded:
        try:
            yield base64.b64decode(each, validate=True)
        except (binascii.Error, ValueError):
            continue
