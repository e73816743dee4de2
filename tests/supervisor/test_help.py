"""Every command's help: an example that parses, its exit codes, and 80 columns."""

from __future__ import annotations

import shlex

import click
import pytest

from relay.cli.client import config_option
from relay.cli.help import EXIT_CODES, Command, Group
from relay.cli.main import commands
from relay.supervisor.signals import HANDLED
from tests.supervisor.test_cli import run
from tests.support.gateway import ROOT

FAILED_DEMO = 1


def walk(command, path=("relay",)):
    """The group and every command below it, each with the words that call it."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, (*path, name))


EVERY = [pytest.param(path, command, id=" ".join(path)) for path, command in walk(commands)]


def help_of(path, command):
    context = click.Context(command, info_name=" ".join(path), max_content_width=80)
    return command.get_help(context)


@pytest.mark.parametrize(("path", "command"), EVERY)
def test_help_has_an_example_and_exit_codes(path, command):
    text = help_of(path, command)
    _, examples = text.split("\nExample", 1)
    examples, codes = examples.split("\nExit codes:\n")
    assert "\n  relay " in examples
    told = [line.split()[0] for line in codes.splitlines() if line[2:3].isdigit()]
    assert told[0] == "0"
    assert "64" in told
    assert {int(code) for code in told} <= {*EXIT_CODES, FAILED_DEMO}
    assert told == sorted(told, key=int)
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(("path", "command"), EVERY)
def test_a_command_that_asks_the_relay_tells_69_and_78(path, command):
    """With --config a file is looked up (78); all but two ask the relay (69)."""
    if any(param.name == "config_file" for param in command.params):
        assert 78 in command.exit_codes
        assert (69 in command.exit_codes) == (command.name not in {"start", "check"})


@pytest.mark.parametrize(("path", "command"), EVERY)
def test_an_example_is_accepted_by_the_parser(path, command):
    for example in command.examples:
        line = example.split("   ")[0].partition(" > ")[0].partition(" < ")[0]
        called, rest = commands, shlex.split(line)[1:]
        while isinstance(called, click.Group):
            called, rest = called.commands[rest[0]], rest[1:]
        called.make_context("relay", rest)


@pytest.mark.parametrize(("path", "command"), EVERY)
def test_every_option_and_every_listed_command_has_its_text(path, command):
    options = [param for param in command.params if isinstance(param, click.Option)]
    assert all(option.help for option in options)
    text = help_of(path, command)
    for child in getattr(command, "commands", {}).values():
        assert child.get_short_help_str(200) in text


def test_a_command_without_examples_cannot_be_defined():
    with pytest.raises(TypeError, match="examples"):

        @commands.command()
        @config_option
        def forgotten(config_file):
            """Do something."""

    assert commands.command_class is Command
    assert isinstance(commands, Group)


def test_the_version_option_says_what_the_command_says():
    option, command = run("--version"), run("version")
    assert (option.returncode, option.stderr) == (0, "")
    assert option.stdout == command.stdout


def test_without_a_command_help_has_groups_and_where_to_read_on():
    said = run()
    assert said.returncode == 64
    assert "A mutual-TLS gateway at layer 4" in said.stderr
    for heading in ("Run the relay:", "Control the running relay:", "Tools:", "Exit codes:"):
        assert f"\n{heading}\n" in said.stderr
    assert "docs/" in said.stderr
    assert max(map(len, said.stderr.splitlines())) <= 80


def test_the_operation_page_has_every_exit_code_and_every_signal():
    page = (ROOT / "docs" / "operation.md").read_text(encoding="utf-8")
    assert all(f"\n| {code} | " in page for code in EXIT_CODES)
    handled = {number.name.removeprefix("SIG") for number in HANDLED} - {"CHLD"}
    assert all(f"`{name}`" in page for name in handled)
    assert max(map(len, page.splitlines())) <= 100
