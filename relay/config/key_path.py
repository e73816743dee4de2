"""Where in the configuration file something is, in the one form that every message uses.

`listener.https.route[1].min_version`, `pool.httpslb.backend[0].address`: listeners and pools by name, members of a list counted from 0.
A listener whose name is missing, odd or not its own is counted too: `listener[2].name`.

Never: knows what the keys mean.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def key_path(parent: str, key: str) -> str:
    """The place of a key inside a table; quoted as TOML wants it where it must be."""
    written = key if _BARE_KEY.fullmatch(key) else json.dumps(key)
    return f"{parent}.{written}" if parent else written


def pool_path(name: str) -> str:
    """The place of a pool: `pool.httpslb`."""
    return key_path("pool", name)


def listener_paths(names: Sequence[object]) -> list[str]:
    """The places of all listeners, given their names in file order (anything that is no usable name counts as none)."""
    uses = Counter(name for name in names if isinstance(name, str))
    return [
        key_path("listener", name)
        if isinstance(name, str) and NAME.fullmatch(name) and uses[name] == 1
        else f"listener[{index}]"
        for index, name in enumerate(names)
    ]
