"""Finds the configuration file, and the state directory that a plain one names.

Never: imports more than it must: checks call `relay status --quiet` every second, and
the import of `relay.config.load` takes 0.4 s of CPU time.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from relay.config.sources import MAX_FILE_BYTES, read_source
from relay.errors import ConfigError, Problem
from relay.files import read_regular

_PLAIN = re.compile(r"[\w./ -]+", re.ASCII)
_LINE = re.compile(r"""\s*state_dir\s*=\s*["']([^"']+)["']\s*(?:\#.*)?""")
DEFAULT_STATE_DIR = "run"
DEFAULT_PATHS = (Path("relay.toml"), Path("/etc/relay/relay.toml"))


def find_config(explicit: Path | None) -> Path:
    """The absolute path of the configuration file to use.

    This is the given one, or the first of DEFAULT_PATHS that exists. Raises
    ConfigError if none exists.
    """
    if explicit is not None:
        return explicit.absolute()
    for candidate in DEFAULT_PATHS:
        try:
            candidate.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            pass  # it may exist; load_config says why it cannot be read
        return candidate.absolute()
    looked = " and ".join(str(each.absolute()) for each in DEFAULT_PATHS)
    raise ConfigError(
        [
            Problem(
                "configuration",
                f"no file found; looked for {looked}",
                "name one with --config FILE, or try: relay demo",
            )
        ]
    )


def plain_state_dir(path: Path) -> Path | None:
    """The absolute `relay.state_dir`, if the file itself has it as a plain path.

    A file without it has the default, if it includes no other. None: ask
    `relay.config.load.load_state_dir`, which also knows included files, references and
    every kind of mistake.
    """
    try:
        tables = read_source(path).tables
        default = None if "include" in tables else DEFAULT_STATE_DIR
        state_dir = tables.get("relay", {}).get("state_dir", default)
    except AttributeError:
        return None
    except ConfigError:
        state_dir = _state_dir_in_text(path)
    plain = isinstance(state_dir, str) and _PLAIN.fullmatch(state_dir)
    return path.absolute().parent / state_dir if plain else None


def _state_dir_in_text(path: Path) -> str | None:
    """`state_dir` of the section `[relay]` in a file that is not valid TOML now.

    The relay runs on with such a file, and a check must not call it dead. A file that
    names none has the default, if a relay's socket is there. None: it cannot be told.
    """
    try:
        text = read_regular(path, MAX_FILE_BYTES)[0].decode(errors="replace")
    except (OSError, ValueError):
        return None
    section = ""
    for line in text.splitlines():
        if line.lstrip().startswith("["):
            section = line.strip().partition("]")[0].strip("[ \t")
        elif section == "relay" and (found := _LINE.fullmatch(line)):
            return found[1]
    if "state_dir" in text or "include" in text:
        return None
    socket = path.absolute().parent / DEFAULT_STATE_DIR / "control.sock"
    return DEFAULT_STATE_DIR if os.access(socket, os.F_OK) else None
