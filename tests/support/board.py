"""A real scoreboard of a small configuration, as the supervisor makes it, for tests of what reads it."""

from __future__ import annotations

from typing import Any

from relay.config.model import Config
from relay.observe.metrics import Facts
from relay.observe.names import SLOT_CPU_US, Series, series_for
from relay.observe.scoreboard import Layout, Scoreboard

CONFIG = Config.model_validate(
    {
        "listener": [{"name": "https", "listen": ["127.0.0.1:0"], "route": [{"sni": ["app.example.com"], "pool": "httpslb"}]}],
        "pool": {"httpslb": {"backend": [{"route": "worker1", "address": "127.0.0.1:1"}, {"route": "worker2", "address": "127.0.0.1:2"}]}},
    },
)
CELLS = 1000


class Board:
    """A scoreboard with its layout; `count` adds in a worker's row as a worker does."""

    def __init__(self, slots: int = 2) -> None:
        self.layout = Layout(CELLS)
        for series in series_for(CONFIG):
            self.layout.add(series)
        for slot in range(slots):
            self.layout.add(Series(SLOT_CPU_US, (str(slot),)))
        self.board = Scoreboard.create(slots + 2, CELLS)
        self.facts = Facts(
            generation=3, version="9.8.7", openssl="OpenSSL 4.0.3", started_at=1_700_000_000.0, state="serving", slots=slots,
            certificates=[{"file": "ssl/server.pem", "subject": 'CN="a\\b"', "not_after": 1_900_000_000.0}],
        )
        self.publish()

    def publish(self, **facts: Any) -> None:
        """Publish the layout and the facts, some of them changed."""
        self.facts = Facts(**{**self.facts, **facts})
        self.board.publish(self.layout, dict(self.facts))

    def count(self, row: int, name: str, *labels: str, by: int = 1) -> None:
        """Add to one cell of one row."""
        self.board.row(row)[self.layout.cell(name, *labels)] += by
