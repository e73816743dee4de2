"""A plugin of coverage.py: lets confined processes write what they measured.

Workers, the checker and the admin process give up by Landlock the right to write files.
`.ci/run coverage` copies this file into its environment. There, each Landlock rule set
also allows the directory of coverage's data.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

LANDLOCK = "relay.sandbox.landlock"


class _Finder(MetaPathFinder):
    """Changes `relay.sandbox.landlock` after its import, which is measured too."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == LANDLOCK else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._directory)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Loader, directory: Path) -> None:
        self._loader, self._directory = loader, directory

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        restrict, everything = module.restrict, module.Rule(self._directory, module.ALL)

        def with_directory(forbidden: Any, allowed: Any, **more: Any) -> Any:
            return restrict(forbidden, [*allowed, everything], **more)

        module.restrict = with_directory


def coverage_init(_registry: Any, _options: dict[str, Any]) -> None:
    """Called by coverage.py in each process it measures, and again after each fork."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(Path(os.environ["COVERAGE_DIRECTORY"])))
