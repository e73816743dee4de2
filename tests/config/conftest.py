"""A valid configuration, and the problems that the loader finds in changed ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from relay.config.load import load_config
from relay.config.model import Config
from relay.errors import ConfigError, Problem

RIGHT = """
[relay]
workers = 2
[log]
access = "-"
[admin]
listen = "127.0.0.1:9180"
[[listener]]
name = "https"
listen = ["127.0.0.1:8443", "[::1]:8443"]
[[listener.route]]
sni = ["app.example.com"]
pool = "web"
certificate = "ssl/server.pem"
private_key = "ssl/server.pem"
client_ca = "ssl/ca.pem"
[[listener.route]]
pool = "rest"
certificate = "ssl/server.pem"
private_key = "ssl/server.pem"
client_ca = "ssl/ca.pem"
[pool.web]
machine_certificate = "ssl/client.pem"
machine_key = "ssl/client.pem"
backend_ca = "ssl/ca.pem"
[[pool.web.backend]]
route = "w1"
address = "192.0.2.1:443"
[[pool.web.backend]]
route = "w2"
address = "192.0.2.2:443"
[pool.rest]
machine_certificate = "ssl/client.pem"
machine_key = "ssl/client.pem"
backend_ca = "ssl/ca.pem"
[[pool.rest.backend]]
route = "r1"
address = "[2001:db8::1]:443"
"""

Edit = tuple[str, str]


@pytest.fixture
def right() -> str:
    return RIGHT


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write((old, new), …)`: a file with the right configuration, changed.

    Each pair replaces the first occurrence of `old`.
    """

    def writer(*edits: Edit, text: str = RIGHT) -> Path:
        for old, new in edits:
            assert old in text, old
            text = text.replace(old, new, 1)
        file = tmp_path / "relay.toml"
        file.write_text(text, encoding="utf-8")
        return file

    return writer


@pytest.fixture
def load(write: Callable[..., Path]) -> Callable[..., Config]:
    return lambda *edits, **text: load_config(write(*edits, **text))


@pytest.fixture
def problems(write: Callable[..., Path]) -> Callable[..., tuple[Problem, ...]]:
    """What is wrong with the edited configuration; empty when it loads."""

    def check(*edits: Edit, **text: str) -> tuple[Problem, ...]:
        try:
            load_config(write(*edits, **text))
        except ConfigError as error:
            return error.problems
        return ()

    return check
