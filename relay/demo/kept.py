"""What `relay demo --keep DIR` leaves: a configuration that can be started again.

The demonstration takes any free ports. Here they become fixed, and a script starts the
backends.

Never: overwrites a file of somebody else.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

import relay
from relay.errors import StartupError

SCRIPT = "backends.sh"
_SCRIPT = """\
#!/bin/sh
# Starts the backends of this directory. Ctrl-C ends them.
cd "$(dirname "$0")" || exit 1
export PYTHONPATH={path}
pids=
trap 'kill $pids' INT TERM
start() {{
    {python} -m relay.demo.backend --stay --name "$1" --subject "$2" --port "$3" \\
        --certificate "$1.pem" --private-key "$1.key" --client-ca ca.pem >/dev/null &
    pids="$pids $!"
}}
{starts}
wait
"""


def make_directory(directory: Path) -> Path:
    """Make DIR, for this user only. Raises StartupError if it has files."""
    directory = directory.absolute()
    hint = "name a directory that is empty or does not exist"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise StartupError(f"--keep: {directory} is not empty", hint)
    except OSError as error:
        what = f"--keep: {directory} cannot be made: {error.strerror or error}"
        raise StartupError(what, hint) from None
    return directory


def write_script(directory: Path, ports: Mapping[str, int], subjects: Mapping[str, str]) -> None:
    """Write the script that starts the backends on these ports."""
    starts = "\n".join(
        f"start {shlex.quote(name)} {shlex.quote(subjects[name])} {port}"
        for name, port in ports.items()
    )
    package = str(Path(relay.__file__).parents[1])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    text = _SCRIPT.format(path=shlex.quote(path), python=shlex.quote(sys.executable), starts=starts)
    script = directory / SCRIPT
    script.write_text(text, encoding="utf-8")
    script.chmod(0o755)


def how_to_start(directory: Path, port: int) -> list[str]:
    """The commands that start it again, and that try it."""
    here = shlex.quote(str(directory))
    script = Path(sys.argv[0])
    command = str(script) if script.name == "relay" else f"{sys.executable} -m relay"
    curl = f"curl --cacert {here}/ca.pem --cert {here}/client.pem --key {here}/client.key"
    return [
        f"{here}/{SCRIPT} &",
        f"{command} start --config {here}/relay.toml",
        f"{curl} https://localhost:{port}/",
    ]
