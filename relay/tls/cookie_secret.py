"""Reads the secret of a pool that inserts cookies.

Never: shows a byte of it, in a message or in a repr.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from relay.config.key_path import pool_path
from relay.config.model import Config
from relay.core.cookie import MIN_SECRET_BYTES
from relay.credentials import file_remedy, shown
from relay.errors import ConfigError, Problem
from relay.files import Files

_MAX_BYTES = 4096
_REMEDY = (
    "create it with: openssl rand -hex 32 > FILE; chmod 600 FILE;"
    " all relays that serve the same clients need the same secret"
)


def load_secrets(
    config: Config, files: Files | None = None
) -> tuple[dict[str, bytes], list[Problem]]:
    """The secrets of all pools that insert cookies, by pool name, and the problems."""
    secrets: dict[str, bytes] = {}
    problems: list[Problem] = []
    for name, file in _files(config):
        try:
            secrets[name] = load_secret(f"{pool_path(name)}.cookie_secret_file", file, files)
        except ConfigError as error:
            problems += error.problems
    return secrets, problems


def _files(config: Config) -> Iterator[tuple[str, Path]]:
    for name, pool in config.pool.items():
        if pool.cookie_insert and pool.cookie_secret_file is not None:
            yield name, pool.cookie_secret_file


def load_secret(where: str, file: Path, files: Files | None = None) -> bytes:
    """The file's bytes without surrounding white space.

    Raises ConfigError if they are too few, or if every user may read the file.
    """
    try:
        data, mode = (files or Files()).read(file, _MAX_BYTES)
    except OSError as error:
        raise ConfigError(
            [
                Problem(
                    where,
                    f"cannot read {shown(file)}: {error.strerror}",
                    file_remedy(file, _REMEDY),
                )
            ]
        ) from None
    secret = data.strip()
    if len(secret) < MIN_SECRET_BYTES:
        what = (
            f"{shown(file)} has {len(secret)} bytes; it needs at least {MIN_SECRET_BYTES} random"
            " bytes"
        )
        raise ConfigError([Problem(where, what, _REMEDY)])
    if len(secret) > _MAX_BYTES:
        raise ConfigError(
            [Problem(where, f"{shown(file)} has more than {_MAX_BYTES} bytes", _REMEDY)]
        )
    if mode & stat.S_IROTH:
        what = f"every user of this machine can read {shown(file)}"
        raise ConfigError([Problem(where, what, f"chmod 600 {file}")])
    return secret
