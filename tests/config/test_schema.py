"""The JSON Schema for editors: what loads is valid, what is wrong is marked."""

from __future__ import annotations

import copy
import json
import re

import jsonschema
import pytest
import tomli

from relay.config.load import load_config
from relay.config.reference import read_reference
from relay.config.schema import json_schema
from tests.config.test_documents import SNIPPETS
from tests.config.test_reference import EXAMPLES, REFERENCE
from tests.supervisor.test_cli import run

TEXT = REFERENCE.read_text(encoding="utf-8")
SCHEMA = json_schema(TEXT)
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
SECTIONS = read_reference(TEXT)
KEYS = [(section.name, key) for section in SECTIONS for key in section.keys]


def errors_of(config):
    return [f"{each.json_path}: {each.message}" for each in VALIDATOR.iter_errors(config)]


def keys_of(schema, path=""):
    """Every key of a schema with its path."""
    for name, inside in schema.get("properties", {}).items():
        yield f"{path}.{name}".removeprefix("."), inside
        values = (inside.get("items"), inside.get("additionalProperties"), *inside.get("anyOf", ()))
        for each in (inside, *(each for each in values if isinstance(each, dict))):
            yield from keys_of(each, f"{path}.{name}")


def config_with(section, written):
    """The reference with another value for a key, and the table that has it."""
    config = copy.deepcopy(tomli.loads(TEXT))
    table = config
    for step in section.split(".") if section else ():
        table = table.setdefault(step, {})
        table = table["httpslb"] if step == "pool" else table
        table = table[0] if isinstance(table, list) else table
    table.update(written)
    return config


def test_the_schema_is_one_and_the_command_prints_it():
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    printed = run("schema")
    assert json.loads(printed.stdout) == SCHEMA, printed.stderr


def test_the_reference_and_every_configuration_beside_it_are_valid():
    """Those of conf/kubernetes and the like too."""
    files = [*REFERENCE.parent.rglob("*.toml")]
    assert {REFERENCE, *EXAMPLES} <= {*files}
    for file in files:
        assert errors_of(tomli.loads(file.read_text(encoding="utf-8"))) == [], file


def test_every_snippet_of_the_configuration_page_is_valid():
    """A snippet is a part of a file: it may lack what its section requires."""
    for snippet in SNIPPETS:
        errors = [each for each in errors_of(tomli.loads(snippet)) if "required" not in each]
        assert [each for each in errors if "is not of type 'array'" not in each] == [], snippet


def test_every_key_has_a_description():
    found = dict(keys_of(SCHEMA))
    assert [path for path, inside in found.items() if not inside["description"].strip()] == []
    assert len(found) > 150
    assert "server name" in found["listener.route.sni"]["description"].lower()
    assert found["pool.ciphers_tls12"]["description"].startswith(
        "Ciphers for TLS 1.2 with backends"
    )
    assert found["listener.route.deny.cn"] == found["listener.route.allow.cn"]


@pytest.mark.parametrize(("section", "key"), KEYS, ids=lambda each: getattr(each, "name", each))
def test_a_key_takes_what_the_reference_shows_and_no_other_type(section, key):
    shown = tomli.loads(f"{key.name} = {key.value}")
    assert errors_of(config_with(section, shown)) == []
    assert errors_of(config_with(section, {key.name: {"a": [{}]}})), key.name
    assert errors_of(config_with(section, {f"{key.name}x": 1})), key.name
    default = dict(keys_of(SCHEMA))[f"{section}.{key.name}".removeprefix(".")].get("default")
    assert default is None or errors_of(config_with(section, {key.name: default})) == []


@pytest.mark.parametrize(
    ("section", "written", "said"),
    [
        ("relay", {"wacth_s": 2}, "'wacth_s' was unexpected"),
        ("relay", {"workers": 0}, "relay.workers"),
        ("relay", {"workers": True}, "relay.workers"),
        ("timeouts", {"idle_s": -1}, "-1 is less than or equal to the minimum of 0"),
        ("timeouts", {"idle_s": "300"}, "timeouts.idle_s"),
        ("log", {"level": "verbose"}, "log.level"),
        ("listener", {"keepalive": True}, "listener[0].keepalive"),
        ("listener", {"accept_proxy": {"from": []}}, "listener[0].accept_proxy"),
        ("listener", {"listen": "0.0.0.0:443"}, "listener[0].listen"),
        ("listener.route", {"min_version": "TLSv1.1"}, "route[0].min_version"),
        ("listener.route", {"mode": None}, "route[0].mode"),
        ("pool.backend", {"weight": 257}, "257 is greater than the maximum of 256"),
    ],
)
def test_a_mistake_is_marked(section, written, said):
    assert said in "\n".join(errors_of(config_with(section, written)))


@pytest.mark.parametrize(
    ("section", "written"),
    [
        ("relay", {"workers": 4}),
        ("relay", {"watch_s": "${WATCH_S}"}),
        ("log", {"level": "${LEVEL}"}),
        ("listener.route", {"session_tickets": "${file:tickets}"}),
        ("listener", {"keepalive": False, "accept_proxy": False}),
        ("listener", {"accept_proxy": {"from": ["unix"]}}),
        ("pool", {"source": "192.0.2.1"}),
        ("pool", {"source": ["192.0.2.1"]}),
    ],
)
def test_every_form_of_a_value_is_valid(section, written):
    assert errors_of(config_with(section, written)) == []


@pytest.mark.parametrize(
    "text",
    [
        '[[listener]]\nname = "https"\n[[listener.route]]\npool = "a"\n',
        '[[listener]]\nname = "https"\nlisten = ["0.0.0.0:443"]\n',
        '[pool.a]\nmachine_key = "machine.pem"\n',
    ],
)
def test_an_included_file_that_adds_to_a_section_is_valid(text):
    assert errors_of(tomli.loads(text)) == []


def test_a_file_with_the_editors_hint_loads(tmp_path):
    file = tmp_path / "relay.toml"
    file.write_text(f"#:schema ./relay.schema.json\n{TEXT}", encoding="utf-8")
    assert load_config(file).source == file


def test_the_reference_is_read_whole():
    titles = re.findall(r"^(?:# )?(\[+[a-z.]+\]+)", TEXT, re.MULTILINE)
    assert [each.title for each in SECTIONS[1:]] == [
        each.replace("httpslb", "NAME") for each in titles
    ]
    written = re.findall(r"^(# )?([a-z0-9_]+) = ", TEXT, re.MULTILINE)
    assert [(bool(mark), name) for mark, name in written] == [
        (key.is_commented, key.name) for _, key in KEYS
    ]
