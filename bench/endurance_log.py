"""What the access log of a relay says of the clients of `bench.endurance`.

Never: decides whether a client counts as lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from bench.endurance_counts import Counts
from bench.endurance_excuses import Logged
from bench.endurance_load import CLIENT


@dataclass
class AccessLog:
    """What the access log says of the clients; strangers are left out."""

    sessions: dict[int, list[Logged]] = field(default_factory=dict)  # by the client's port
    handshakes: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    broken_lines: int = 0

    @property
    def counts(self) -> Counts:
        """To compare with what others have counted."""
        return Counts(self.handshakes, self.bytes_in, self.bytes_out)

    def add(self, line: str) -> None:
        """Count one line."""
        try:
            record = json.loads(line)
        except ValueError:
            self.broken_lines += 1
            return
        host, _, port = record["client"].rpartition(":")
        if host != CLIENT:
            return  # a stranger, which may have the port of a client
        began_at = datetime.fromisoformat(record["time"]).timestamp()
        ended_at = began_at + record["duration_s"]
        session = Logged(began_at, ended_at, record["reason"])
        self.sessions.setdefault(int(port), []).append(session)
        self.handshakes += record["inbound_handshake_s"] is not None
        self.bytes_in += record["bytes_in"]
        self.bytes_out += record["bytes_out"]


def sum_of(lines: Iterable[str], name: str, *labels: str) -> int:
    """The sum of the metrics of this name that have one of these labels each."""
    return sum(
        int(float(line.rpartition(" ")[2]))
        for line in lines
        if line.startswith(name + "{") and all(label in line for label in labels)
    )
