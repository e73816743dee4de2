"""The files that belong to the relay beside its code, and their names.

They are conf/, systemd/ and CHANGELOG.md: in the source tree beside the package, in an
installed package in its directory `shipped` (pyproject.toml says so).

Never: writes.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import NamedTuple

import relay

_PACKAGE = Path(relay.__file__).parent
_INSTALLED = _PACKAGE / "shipped"
ROOT = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent
REFERENCE = ROOT / "conf" / "relay.toml"
UNIT = ROOT / "systemd" / "relay.service"

_SCRIPTS = ROOT / "conf" / "package"
_FIRST_SENTENCE = re.compile(r"(.*?)(?:\. |[.:]?$)")


class UnknownNameError(Exception):
    """A name that no shipped file has; the text says which ones are near."""


class Found(NamedTuple):
    """A file, or all files of a directory, by their names inside it."""

    files: dict[str, Path]
    is_directory: bool


def shipped_files() -> dict[str, Path]:
    """All files by their names: paths, without `conf/` at the start.

    What makes packages is left out: it needs the source tree.
    """
    files = [*(ROOT / "conf").rglob("*"), *(ROOT / "systemd").iterdir(), ROOT / "CHANGELOG.md"]
    named = {
        str(each.relative_to(ROOT)).removeprefix("conf/"): each
        for each in files
        if each.is_file() and each.suffix != ".pyc" and _SCRIPTS not in each.parents
    }
    return {name: named[name] for name in sorted(named, key=_order)}


def _order(name: str) -> tuple[bool, bool, str]:
    return name != "relay.toml", not name.startswith("examples/"), name


def find_shipped(wanted: str) -> Found:
    """The file or the directory of this name.

    The end of a name is enough, and so is a file name without its ending, if only one
    file has it. Raises UnknownNameError.
    """
    files = shipped_files()
    asked = wanted.strip("/").removeprefix("conf/")
    if asked in files:
        return Found({Path(asked).name: files[asked]}, is_directory=False)
    inside = f"{asked}/"
    if within := {
        name.removeprefix(inside): path for name, path in files.items() if name.startswith(inside)
    }:
        return Found(within, is_directory=True)
    ends = [name for name in files if asked and f"/{name}".endswith(f"/{asked}")]
    stems = [name for name in files if Path(name).stem.lower() == asked.lower()]
    found = ends or stems
    if len(found) == 1:
        return Found({Path(found[0]).name: files[found[0]]}, is_directory=False)
    if found:
        raise UnknownNameError(f"{wanted} may be each of these files: {', '.join(found)}")
    known = {each: name for name in files for each in (name, Path(name).name, Path(name).stem)}
    near = difflib.get_close_matches(asked, known, n=1)
    hint = f"did you mean {known[near[0]]}?" if near else "`relay example` lists the names"
    raise UnknownNameError(f"there is no example {wanted}; {hint}")


def summary(path: Path) -> str:
    """What the comment at the start of a file says first; "" if it has none.

    JSON has no comments, so it is the description of a JSON file.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except ValueError:  # not text
        return ""
    if path.suffix == ".json":
        return str(json.loads("\n".join(lines)).get("description", "")).partition(":")[0]
    comment: list[str] = []
    for line in lines:
        if not line.startswith("# "):
            break
        comment.append(line.removeprefix("# ").strip())
    sentence = _FIRST_SENTENCE.match(" ".join(comment))
    return sentence[1] if sentence else ""
