"""Reads one file that should hold PEM, and says why it cannot be read.

Never: looks at what is in the file.
"""

from __future__ import annotations

from pathlib import Path

from relay.credentials import file_remedy, shown
from relay.errors import Problem
from relay.files import Files

# Debian's whole CA bundle is 220 kB. A far larger file is a mistake and would cost
# memory.
MAX_FILE_BYTES = 16 * 1024 * 1024

_PATH_REMEDY = "give the path of a PEM file"


def read_pem_file(where: str, file: Path, problems: list[Problem], files: Files) -> bytes | None:
    """The bytes of a file. None if it cannot be read; then `problems` says why."""

    def problem(what: str, remedy: str) -> None:
        problems.append(Problem(where, what, file_remedy(file, remedy)))

    try:
        data, _ = files.read(file, MAX_FILE_BYTES)
    except IsADirectoryError:
        problem(f"{shown(file)} is a directory", "give the path of the PEM file in it")
    except FileNotFoundError:
        remedy = "create it, or correct the path (relative paths start at the configuration file)"
        problem(f"{shown(file)} does not exist", remedy)
    except PermissionError:
        remedy = (
            "give the user that starts the relay read permission,"
            " or start the relay as root with relay.user set"
        )
        problem(f"no permission to read {shown(file)}", remedy)
    except OSError as error:
        problem(f"{shown(file)} cannot be read: {error.strerror}", _PATH_REMEDY)
    else:
        if len(data) <= MAX_FILE_BYTES:
            return data
        problem(f"{shown(file)} is larger than {MAX_FILE_BYTES} bytes", _PATH_REMEDY)
    return None
