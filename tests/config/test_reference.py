"""The reference and the examples say what the code does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli
from pydantic import BaseModel

from relay.config.listener_model import Allow, Deny, Listener, Route
from relay.config.load import load_config
from relay.config.model import (
    Admin,
    Config,
    Limits,
    Log,
    Relay,
    Timeouts,
)
from relay.config.pool_model import Backend, Health, Pool
from relay.config.section import Crl, Section

CONF = Path(__file__).resolve().parents[2] / "conf"
REFERENCE = CONF / "relay.toml"
EXAMPLES = sorted((CONF / "examples").glob("*.toml"))

SECTIONS: dict[str, type[BaseModel]] = {
    "[relay]": Relay,
    "[admin]": Admin,
    "[log]": Log,
    "[timeouts]": Timeouts,
    "[limits]": Limits,
    "[[listener]]": Listener,
    "[[listener.route]]": Route,
    "[listener.route.allow]": Allow,
    "[listener.route.deny]": Deny,
    "[listener.route.crl]": Crl,
    "[pool.httpslb]": Pool,
    "[pool.httpslb.crl]": Crl,
    "[pool.httpslb.health]": Health,
    "[[pool.httpslb.backend]]": Backend,
}
# Keys that other sections of the file stand for.
TABLES = {
    (Listener, "route"),
    (Route, "allow"),
    (Route, "deny"),
    (Route, "crl"),
    (Pool, "crl"),
    (Pool, "health"),
    (Pool, "backend"),
}
# Optional in the model, because a passthrough route needs none. All other routes and
# pools need them, so the reference has them uncommented.
FILES = {
    "certificate",
    "private_key",
    "client_ca",
    "machine_certificate",
    "machine_key",
    "backend_ca",
}
# Optional and without a default to show: the reference has an example.
EXAMPLE_ONLY = {
    ("", "include"),
    ("[admin]", "password_file"),
    ("[[listener.route]]", "key_passphrase_file"),
    ("[[listener.route]]", "ocsp_response"),
    ("[pool.httpslb]", "cookie_secret_file"),
    ("[pool.httpslb]", "key_passphrase_file"),
    ("[[listener]]", "idle_s"),
    ("[[listener]]", "linger_s"),
    ("[pool.httpslb]", "idle_s"),
    ("[pool.httpslb]", "linger_s"),
    ("[pool.httpslb]", "send_proxy_tlvs"),
}

_HEADER = re.compile(r"(# )?(\[+[a-z.]+\]+)(\s+#.*)?")
_KEY = re.compile(r"(# )?([a-z0-9_]+) = .+")


def written() -> Iterator[tuple[str, str, bool, Any, str]]:
    """Every key of the reference: section, key, commented out or not, value, line."""
    section = ""
    for line in REFERENCE.read_text(encoding="utf-8").splitlines():
        if header := _HEADER.fullmatch(line):
            section = header[2]
        elif key := _KEY.fullmatch(line):
            yield section, key[2], bool(key[1]), tomli.loads(line.removeprefix("# "))[key[2]], line


def test_the_examples_are_there():
    assert {each.stem for each in EXAMPLES} >= {
        "apache-vhost",
        "minimal",
        "several-tenants",
        "partners",
        "postgresql",
        "grpc-h2",
    }


@pytest.mark.parametrize("file", [REFERENCE, *EXAMPLES], ids=lambda file: file.stem)
def test_the_reference_and_every_example_load(file):
    assert load_config(file).source == file


def test_the_reference_has_exactly_the_models_sections():
    headers = {
        match[2]
        for line in REFERENCE.read_text(encoding="utf-8").splitlines()
        if (match := _HEADER.fullmatch(line))
    }
    assert headers == set(SECTIONS)
    assert Config.model_fields.keys() - {"source", "include"} == {
        header.strip("[]").partition(".")[0] for header in SECTIONS
    }
    assert "include" in {key for section, key, *_ in written() if not section}


@pytest.mark.parametrize("section", SECTIONS)
def test_the_reference_has_exactly_the_keys_of_each_section(section):
    model = SECTIONS[section]
    expected = {field for field in model.model_fields if (model, field) not in TABLES}
    assert {key for where, key, *_ in written() if where == section} == expected


def test_every_default_in_the_reference_is_the_models():
    commented = {(section, key) for section, key, off, *_ in written() if off}
    compared = 0
    for section, key, off, value, _ in written():
        if (section, key) in EXAMPLE_ONLY:
            assert off
            continue
        field = SECTIONS[section].model_fields[key]
        if field.is_required() or key in FILES or (not off and (section, key) in commented):
            assert not off, f"{section} {key} is needed, so it stands there uncommented"
            continue
        default = field.default
        assert value == (
            list(default)
            if isinstance(default, tuple)
            else str(default)
            if isinstance(default, Path)
            else default.model_dump()
            if isinstance(default, Section)
            else False
            if key == "accept_proxy"  # None stands for false
            else default
        ), f"{section} {key}"
        compared += 1
    assert compared > 40


def test_every_key_of_the_reference_is_explained():
    lines = REFERENCE.read_text(encoding="utf-8").splitlines()
    for section, key, _, _, line in written():
        if section == "[listener.route.deny]":  # its keys are explained in allow
            continue
        above = lines[lines.index(line) - 1]
        alike = key in {"ciphers_tls12", "ciphersuites_tls13", "groups"}
        assert (
            "  # " in line
            or " # " in line.removeprefix("# ")
            or alike
            or (above.startswith("# ") and not _KEY.fullmatch(above))
        ), f"{section} {key}"
