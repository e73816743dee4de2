"""Manual pages and shell completion: made from the command line and the reference."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from relay.cli.main import commands
from relay.config.reference import read_reference
from tests.config.test_reference import REFERENCE
from tests.packaging.conftest import run
from tests.supervisor.test_help import walk
from tests.support.gateway import ROOT
from tests.support.programs import find, needs, program

SECTIONS = read_reference(REFERENCE.read_text(encoding="utf-8"))
PAGES = {f"{'-'.join(path)}.1" for path, _ in walk(commands)} | {"relay.toml.5"}


@pytest.fixture(scope="module")
def manual(tmp_path_factory):
    to = tmp_path_factory.mktemp("manual")
    run(
        sys.executable,
        ROOT / "conf" / "package" / "manual.py",
        to,
        cwd="/",
        SOURCE_DATE_EPOCH="86400",
    )
    return to


def test_each_command_and_the_configuration_have_a_page(manual):
    assert {each.name for each in manual.iterdir()} == PAGES
    for each in manual.iterdir():
        assert each.read_text().startswith(f".TH {each.stem.upper()} {each.suffix[1:]} 1970-01-02 ")


@needs("mandoc")
def test_the_pages_are_right_for_mandoc(manual):
    """No warning: only a style note about long lines is left."""
    run(program("mandoc"), "-Tlint", "-Wwarning", *sorted(manual.iterdir()), cwd=manual)


@needs("mandoc")
def test_a_page_reads_as_the_help_does(manual):
    """Every option, example and exit code of a command is on its page."""

    def shown(name):
        text = run(program("mandoc"), "-Tascii", "-Owidth=500", manual / name, cwd=manual)
        return run("col", "-bx", cwd=manual, said=text)

    for path, command in walk(commands):
        page = shown(f"{'-'.join(path)}.1")
        words = [opt for param in command.params for opt in param.opts if opt.startswith("-")]
        words += [*command.examples, *command.exit_codes.values(), "-h, --help"]
        assert [each for each in words if each not in page] == [], path
    page = shown("relay.toml.5")
    keys = [(key.is_commented, key.name) for section in SECTIONS for key in section.keys]
    lacking = [name for off, name in keys if f"{'# ' if off else ''}{name} = " not in page]
    assert [each for each in lacking if each != "sni"] == []  # it is there twice
    assert [each.title for each in SECTIONS if each.title not in page] == []


def answers(shell_program, script, tmp_path):
    """What a shell prints that can call `relay`."""
    command = tmp_path / "relay"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m relay "$@"\n')
    command.chmod(0o755)
    return run(
        *shell_program,
        script,
        cwd=tmp_path,
        PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        PYTHONPATH=str(ROOT),
    )


def test_bash_completes_commands_options_and_examples(tmp_path):
    """As bash calls it: with the words before the cursor in COMP_WORDS."""
    script = """
        eval "$(_RELAY_COMPLETE=bash_source relay)"
        complete -p relay
        ask() { COMPREPLY=(); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _relay_completion relay
                echo "${COMPREPLY[*]}"; }
        ask relay re
        ask relay reload --c
        ask relay backend dr
        ask relay example mini
        ask relay example examples/m
    """
    said = answers(("bash", "-c"), script, tmp_path).splitlines()
    assert said[0] == "complete -o nosort -F _relay_completion relay"
    minimal = "examples/minimal.toml"
    assert said[1:] == ["reload", "--config --canary", "drain", minimal, minimal]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script(shell, tmp_path):
    script = answers(("sh", "-c"), f"_RELAY_COMPLETE={shell}_source relay", tmp_path)
    assert f"_RELAY_COMPLETE={shell}_complete" in script
    if path := find(shell):
        subprocess.run([path, "-n"], input=script, text=True, timeout=20, check=True)
