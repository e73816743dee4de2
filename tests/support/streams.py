"""Lets relay take everything for a fast stream, so that old tests cover streaming."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Any

import pytest

from relay.tls import streaming
from relay.worker import connection


def stream_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every byte go through `streaming.stream`, in workers forked later too."""
    monkeypatch.setattr(streaming, "LEAST_BYTES", 1)
    monkeypatch.setattr(streaming, "TRIED_EVERY", 0)
    monkeypatch.setattr(connection, "TRIED_EVERY", 0)


@dataclass
class End:
    """A source for the pump, without a session."""

    sock: socket.socket
    ssl: Any
    held: bytes = b""
    shut: bool = False
    closing: bool = False
    wants_write: bool = False
    errno: int = 0
    pause: int = field(default_factory=lambda: streaming.TRIED_EVERY)
