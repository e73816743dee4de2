"""Key paths: how every message names a key or section of the configuration.

`listener.https.route[1].min_version`, `pool.httpslb.backend[0].address`: listeners and
pools by name, members of a list counted from 0. A listener whose name is missing,
invalid or used twice is counted too: `listener[2].name`.

Never: knows what the keys mean.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from relay.config.listener_model import Listener, Route
from relay.config.model import Config

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
NAME_REMEDY = "use 1 to 64 of A-Z a-z 0-9 _ . - and start with a letter or digit"
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def key_path(parent: str, key: str) -> str:
    """The path of a key inside a table, with the quotes that TOML needs."""
    written = key if _BARE_KEY.fullmatch(key) else json.dumps(key)
    return f"{parent}.{written}" if parent else written


def pool_path(name: str) -> str:
    """The path of a pool: `pool.httpslb`."""
    return key_path("pool", name)


def private_key_path(where: str) -> str:
    """The path of a private key, from that of its certificate."""
    section, _, key = where.rpartition(".")
    return f"{section}.{'machine_key' if key == 'machine_certificate' else 'private_key'}"


def listener_paths(names: Sequence[object]) -> list[str]:
    """The paths of all listeners, from their names in file order.

    Anything that is not a valid name, or not a string at all, counts as no name.
    """
    uses = Counter(name for name in names if isinstance(name, str))
    return [
        key_path("listener", name)
        if isinstance(name, str) and NAME.fullmatch(name) and uses[name] == 1
        else f"listener[{index}]"
        for index, name in enumerate(names)
    ]


def routes_of(config: Config) -> Iterator[tuple[str, Listener, Route]]:
    """Every route with its path and its listener, in the configuration's order."""
    paths = listener_paths([each.name for each in config.listener])
    for where, listener in zip(paths, config.listener, strict=True):
        for index, route in enumerate(listener.route):
            yield f"{where}.route[{index}]", listener, route
