"""No input makes the importer raise, and what it writes is always a configuration."""

from __future__ import annotations

import contextlib

import tomli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.importer.build import convert
from relay.importer.expressions import NotPossibleError, parse_rule
from relay.importer.parser import Parser
from relay.importer.text import decode, logical_lines, split_words, without_comment
from relay.importer.toml import value
from tests.importer.conftest import CONFIGS

SETTINGS = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
ALL = b"\n".join(path.read_bytes() for path in sorted(CONFIGS.glob("*.conf")))
PIECES = sorted({*ALL.decode().split("\n")})


class Memory:
    """One file, without a disk; also the machine."""

    has_ipv6 = True
    is_root = True

    def __init__(self, data):
        self.data = data

    def read(self, path):
        if path != "/etc/httpd.conf":
            raise FileNotFoundError(2, "No such file", path)
        return self.data

    def expand(self, pattern):
        return ["/etc/httpd.conf"] if "conf" in pattern else []

    def exists(self, path):
        return False

    def has_user(self, name):
        return name == "relay"

    def has_group(self, name):
        return False

    def has_address(self, host):
        return False

    def can_log(self, path, user):
        return True

    def files_in(self, path):
        return []


def run(data):
    memory = Memory(data)
    parser = Parser(memory, {}, {"A": "1"})
    parser.read_main("/etc/httpd.conf")
    imported = convert(parser, memory, {})
    for line in imported.report.lines(imported.read):
        assert line.isprintable()
    tomli.loads(imported.toml)
    return imported


@SETTINGS
@given(st.binary(max_size=400))
def test_any_bytes_are_read(data):
    run(data)


@SETTINGS
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=30)), max_size=60))
def test_any_mixture_of_lines_is_read(lines):
    run("\n".join(lines).encode("utf-8", "replace"))


@SETTINGS
@given(st.integers(0, len(ALL)), st.binary(max_size=6), st.integers(0, 40))
def test_a_damaged_configuration_is_read(at, put, gone):
    run(ALL[:at] + put + ALL[at + gone :])


@SETTINGS
@given(st.text(alphabet="%{}()\"'/m^$|!=~<>&, SSL_CLIENT_S_DN_CNabineqo\\", max_size=60))
def test_any_expression_is_a_rule_or_not_possible(text):
    with contextlib.suppress(NotPossibleError):
        parse_rule(text)


@SETTINGS
@given(st.text(max_size=60))
def test_any_text_is_written_as_toml(text):
    clean = text.encode("utf-8", "replace").decode()
    assert tomli.loads(f"key = {value(clean)}")["key"] == clean.replace("${", "$${")


@SETTINGS
@given(st.binary(max_size=120))
def test_any_bytes_are_lines_and_words(data):
    for line in logical_lines(decode(data)):
        assert line.text.strip()
        split_words(without_comment("x", line.text))


def test_a_huge_file_takes_no_long_time():
    run(b"<VirtualHost *:443>\n" * 3_000)
    run(b"<IfModule x>\n" * 3_000)
    run(b"SSLRequire " + b"(" * 100_000)
    run(b'Header set X "' + b"\\" * 100_000)
