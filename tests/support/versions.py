"""Copies of the relay package with other version numbers, for tests of upgrades."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.support.gateway import ROOT


class Installation:
    """A directory for PYTHONPATH, in which another version can be installed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.install("1.0.0")

    def install(
        self, version: str, change: Callable[[Path], object] = lambda _package: None
    ) -> None:
        """Replace the package by a copy of this version that `change` has changed."""
        fresh = self.directory / "fresh"
        shutil.copytree(ROOT / "relay", fresh)
        init = fresh / "__init__.py"
        text = init.read_text()
        init.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', text))
        change(fresh)
        package = self.directory / "relay"
        if package.exists():
            package.rename(self.directory / "old")
        fresh.rename(package)
        shutil.rmtree(self.directory / "old", ignore_errors=True)


def append(name: str, text: str) -> Callable[[Path], object]:
    """A change: add text at the end of a file of the package."""

    def change(package: Path) -> None:
        file = package / name
        file.write_text(file.read_text() + text)

    return change
