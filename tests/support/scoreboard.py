"""A real scoreboard of a small configuration, for tests of its readers."""

from __future__ import annotations

import json
from typing import Any

from relay.config.model import Config
from relay.shared.entities import (
    HOST,
    RELAY,
    Entities,
    entities_of,
)
from relay.shared.scoreboard import Cells, Layout, Scoreboard
from relay.supervisor.scoreboards import Scoreboards

CONFIG = Config.model_validate(
    {
        "listener": [
            {
                "name": "https",
                "listen": ["127.0.0.1:0"],
                "route": [{"sni": ["app.example.com"], "pool": "httpslb"}],
            }
        ],
        "pool": {
            "httpslb": {
                "backend": [
                    {"route": "worker1", "address": "127.0.0.1:1"},
                    {"route": "worker2", "address": "127.0.0.1:2"},
                ]
            }
        },
    },
)


_opened: list[Scoreboards] = []


def open_scoreboards(**keywords: int) -> Scoreboards:
    """Scoreboards whose descriptors are closed after the test."""
    _opened.append(Scoreboards(**keywords))
    return _opened[-1]


def close_scoreboards() -> None:
    """Close all descriptors. Mapped memory stays while it is used."""
    while _opened:
        _opened.pop().close_files()


def scoreboard_of(entities: Entities, slots: int = 1) -> Scoreboard:
    """A generation's scoreboard with a cell for each of these entities."""
    return open_scoreboards().begin(1, entities, slots)


def hosts_board(*hosts: str) -> tuple[Layout, Cells]:
    """The layout and the states of a generation with these host names."""
    scoreboard = scoreboard_of({RELAY.name: [()], HOST.name: [(host,) for host in hosts]})
    return scoreboard.layout, scoreboard.states.cells


class Board:
    """All scoreboards of a relay with generation 3.

    `count` adds in a worker's row, as a worker does.
    """

    def __init__(self, slots: int = 2, config: Config = CONFIG) -> None:
        self.scoreboards = open_scoreboards()
        self.scoreboard = self.scoreboards.begin(3, entities_of(config), slots)
        self.layout = self.scoreboard.layout
        self.facts: dict[str, Any] = {
            "generation": 3,
            "version": "9.8.7",
            "openssl": "OpenSSL 4.0.3",
            "started_at": 1_700_000_000.0,
            "state": "serving",
            "slots": slots,
        }
        self.lasting: dict[str, Any] = {
            "certificates": [
                {"file": "ssl/server.pem", "subject": 'CN="a\\b"', "not_after": 1_900_000_000.0}
            ]
        }
        self.publish()

    def publish(self, **facts: Any) -> None:
        """Publish the facts, some of them changed."""
        for key, value in facts.items():
            (self.lasting if key in self.lasting else self.facts)[key] = value
        self.scoreboards.publish(self.facts, json.dumps(self.lasting).encode())

    def count(self, row: int, name: str, *labels: str, by: int = 1) -> None:
        """Add to one cell of one row."""
        self.scoreboard.row(row)[self.layout.cell(name, *labels)] += by
