"""The files of `relay init`: a small relay.toml and a systemd unit for it.

The unit is the shipped systemd/relay.service with the paths and users of this machine.

Never: opens a certificate or a key.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from relay.cli.shipped import UNIT as UNIT_TEMPLATE
from relay.config.validate import validate
from relay.errors import StartupError
from relay.supervisor.privileges import Identity, can_run_python

CONFIG, UNIT = "relay.toml", "relay.service"
_ETC = Path("/etc/relay")
_TEXT = """\
# Made by relay init. Every other key has its default: conf/relay.toml explains them all.

[relay]
{relay}{admin}
[[listener]]
name = "https"
listen = {listen}

# Clients must show a certificate of client_ca.
[[listener.route]]
{route}
# Backends must show a certificate of backend_ca that has their name.
[pool.{pool}]
{files}{backends}"""


def make(directory: Path, answers: Mapping[str, Any]) -> dict[Path, str]:
    """The files and their texts. Raises ConfigError if a value cannot be used."""
    user = _user(answers.get("user"))
    tables = _tables(directory, answers, user)
    validate(json.loads(json.dumps(tables)))
    (listener,), ((pool, members),) = tables["listener"], tables["pool"].items()
    backends = "".join(
        f"\n[[pool.{_key(pool)}.backend]]\n{_lines(each)}" for each in members.pop("backend")
    )
    text = _TEXT.format(
        relay=_lines(tables["relay"]),
        admin=f"\n[admin]\n{_lines(tables['admin'])}" if "admin" in tables else "",
        listen=_value(listener["listen"]),
        route=_lines(listener["route"][0]),
        pool=_key(pool),
        files=_lines(members),
        backends=backends,
    )
    state_dir = directory / tables["relay"]["state_dir"]
    config = directory / CONFIG
    return {config: text, directory / UNIT: _unit(config, state_dir, user)}


def write(directory: Path, files: Mapping[Path, str]) -> None:
    """Write the files, each as a whole. Raises StartupError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            new = file.with_name(f".{file.name}.new")
            new.write_text(text, encoding="utf-8")
            new.replace(file)
    except OSError as error:
        what = f"{error.filename or directory} cannot be written: {error.strerror or error}"
        raise StartupError(what, "name another directory with --output") from None


def _tables(directory: Path, answers: Mapping[str, Any], user: str) -> dict[str, Any]:
    """The configuration as tables."""

    def file(key: str, *others: str) -> str:
        given = next(answers[each] for each in (key, *others) if each in answers)
        path = Path(os.path.abspath(given))  # noqa: PTH100 (without following links)
        return str(path.relative_to(directory) if path.is_relative_to(directory) else path)

    name = answers.get("name", "app")
    backends = []
    for index, text in enumerate(answers["backend"], 1):
        route, _, address = text.rpartition("=")
        backends.append({"route": route or f"{name}{index}", "address": address})
        if "backend_name" in answers:
            backends[-1]["name"] = answers["backend_name"]
    section = {"state_dir": _state_dir(directory, name)}
    return {
        "relay": {**section, "user": user} if user else section,
        **({"admin": {"listen": answers["admin"]}} if "admin" in answers else {}),
        "listener": [
            {
                "name": "https",
                "listen": list(answers.get("listen", ("0.0.0.0:8443",))),
                "route": [
                    {
                        **({"sni": list(answers["sni"])} if "sni" in answers else {}),
                        "pool": name,
                        "certificate": file("certificate"),
                        "private_key": file("key", "certificate"),
                        "client_ca": file("client_ca"),
                    }
                ],
            }
        ],
        "pool": {
            name: {
                "machine_certificate": file("machine_certificate", "certificate"),
                "machine_key": _machine_key(answers, file),
                "backend_ca": file("backend_ca", "client_ca"),
                "backend": backends,
            }
        },
    }


def _machine_key(answers: Mapping[str, Any], file: Any) -> str:
    if "machine_certificate" in answers:
        return str(file("machine_key", "machine_certificate"))
    return str(file("machine_key", "key", "certificate"))


def _user(given: str | None) -> str:
    """The user of the workers; "" if the relay is not started as root."""
    if given or os.geteuid():
        return given or ""
    for name in ("relay", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            groups = (entry.pw_gid,)
            if can_run_python(Identity(name, entry.pw_uid, entry.pw_gid, groups, change=True)):
                return name
    return pwd.getpwuid(0).pw_name  # a Python in root's home: for a try


def _state_dir(directory: Path, name: str) -> str:
    """Where systemd makes a directory as root; otherwise beside the configuration."""
    if directory == _ETC:
        return "/run/relay"
    return f"/run/relay-{name}" if os.geteuid() == 0 else "run"


def _key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else json.dumps(name)


def _value(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(str(value).replace("${", "$${"))


def _lines(table: Mapping[str, object]) -> str:
    return "".join(f"{key} = {_value(value)}\n" for key, value in table.items())


def _unit(config: Path, state_dir: Path, user: str) -> str:
    """The unit of the distribution, with what this machine has."""
    template = UNIT_TEMPLATE.read_text(encoding="utf-8")
    command = _command()
    user = user or pwd.getpwuid(os.geteuid()).pw_name
    try:
        group = grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
    except KeyError:
        group = user
    lines = {
        "ExecStart": f"{command} start --config {_word(config)}",
        "ExecReload": f"{command} reload --config {_word(config)}",
        "Documentation": f"file://{quote(str(config))}".replace("%", "%%"),
        "User": user,
        "Group": group,
    }
    if state_dir.parent == Path("/run"):
        lines["RuntimeDirectory"] = state_dir.name
    text = template[template.index("[Unit]") :]
    for key, value in lines.items():
        text = "\n".join(
            f"{key}={value}" if line.startswith(f"{key}=") else line for line in text.split("\n")
        )
    if any(config.is_relative_to(each) for each in ("/tmp", "/var/tmp")):  # noqa: S108
        text = text.replace("PrivateTmp=yes", "PrivateTmp=no")
    more = [f"ExecPaths=-{_word(Path(path))}" for path in sorted({sys.prefix, sys.base_prefix})]
    if state_dir.parent != Path("/run"):
        more.append(f"ReadWritePaths={_word(config.parent)}")
    if any(path.is_relative_to(home) for path in (config, Path(sys.prefix)) for home in _HOMES):
        text = text.replace("ProtectHome=yes", "ProtectHome=read-only")
    text = text.replace("\n[Install]", "\n".join(("", *more, "", "[Install]")))
    copy = f"cp {shlex.quote(str(config.parent / UNIT))} /etc/systemd/system/"
    return (
        "# Made by relay init from systemd/relay.service. Install it:\n"
        f"#   {copy} && systemctl enable --now {UNIT}\n"
        f"# The user {user} must be able to read the certificates and keys in {config.name}.\n"
        + text
    )


_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))


def _command() -> str:
    """The command of the unit that runs this program."""
    script = Path(sys.argv[0])
    if script.name == "relay" and script.is_absolute() and os.access(script, os.X_OK):
        return _word(script)
    beside = Path(sys.executable).with_name("relay")
    return _word(beside) if beside.exists() else f"{_word(Path(sys.executable))} -m relay"


def _word(path: Path) -> str:
    """A path as one word of a unit: systemd expands % and $."""
    text = str(path).replace("%", "%%").replace("$", "$$")
    if not re.search(r"[\s\"'\\;]", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
