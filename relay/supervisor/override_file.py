"""The file `overrides.json` in the state directory: operators' overrides of backends.

Never: follows a symbolic link, or waits for a pipe, that stands in place of the file.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from relay.core.overrides import BackendKey, Override, parse, render
from relay.supervisor.state_dir import replace_file

FILE = "overrides.json"
FILE_BYTES = 16 * 1024 * 1024
VERSION = 1

log = logging.getLogger(__name__)


def save(path: Path, overrides: Mapping[BackendKey, Override]) -> None:
    """Replace the file. Raises OSError."""
    text = json.dumps({"version": VERSION, "overrides": render(overrides)}) + "\n"
    replace_file(path, text, 0o600)


def load(path: Path) -> dict[BackendKey, Override]:
    """The overrides in the file; none if it is missing or broken.

    A broken file is renamed to overrides.broken.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            data = json.loads(file.read(FILE_BYTES))
        if not isinstance(data, dict) or data.get("version") != VERSION:
            raise ValueError(f"it is not of version {VERSION}")
        return parse(data.get("overrides"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        aside = path.with_suffix(".broken")
        why = error.strerror if isinstance(error, OSError) else error
        log.error(
            "%s: cannot be used: %s; no backend is overridden now, and the file is kept as %s",
            path,
            why,
            aside.name,
        )
        try:
            path.replace(aside)
        except OSError:
            log.warning("%s: cannot be renamed; the next change replaces it", path)
        return {}
