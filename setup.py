"""What pyproject.toml cannot say about a build.

- conf/, systemd/ and CHANGELOG.md lie beside the package, where people look for them.
  The wheel has them inside the package, as data; relay.cli.shipped knows both places.
- On a package index, links into the source tree lead nowhere, so they become paths.

Never: copies into the source tree.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SHIPPED = ("conf", "systemd", "CHANGELOG.md")
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)([^)#]+)[^)]*\)")


class BuildPy(build_py):
    """Copies the shipped files into the wheel."""

    def run(self) -> None:
        """Build the package; an editable one finds the files in the source tree."""
        super().run()
        if self.editable_mode:
            return
        to = Path(self.build_lib) / "relay" / "shipped"
        shutil.rmtree(to, ignore_errors=True)  # a former build may have left more files
        to.mkdir(parents=True)
        for name in SHIPPED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, to / name)
            else:
                shutil.copyfile(ROOT / name, to / name)


def readme() -> str:
    """README.md with a path in place of each link into the source tree."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return _LINK.sub(lambda link: _path(link[1], link[2]), text)


def _path(label: str, target: str) -> str:
    return f"`{target}`" if target.endswith(label) else f"{label} (`{target}`)"


setup(
    cmdclass={"build_py": BuildPy},
    long_description=readme(),
    long_description_content_type="text/markdown",
)
