"""A directory like a volume of Kubernetes: all files are behind one link."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path


class Volume:
    """A projected volume. `put` replaces all files at once, as kubelet does.

    Its files belong to root and to `group`, with mode 0440.
    """

    def __init__(self, path: Path, group: int) -> None:
        self.path = path
        path.mkdir()
        path.chmod(0o1777)
        self._group = group
        self._count = 0

    def put(self, files: Mapping[str, Path | str]) -> None:
        """`files` has names below the volume, and contents or files to copy."""
        self._count += 1
        data = self.path / f"..data_{self._count}"
        for name, content in files.items():
            file = data / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.encode() if isinstance(content, str) else content.read_bytes())
            file.chmod(0o440)
            os.chown(file, 0, self._group)
            top = self.path / name.partition("/")[0]
            if not top.is_symlink():
                top.symlink_to(f"..data/{top.name}")
        link = self.path / "..data_new"
        link.symlink_to(data.name)
        link.replace(self.path / "..data")
        if self._count > 1:
            shutil.rmtree(self.path / f"..data_{self._count - 1}")
