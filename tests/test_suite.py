"""The suite's own rules: every wait has a deadline, a missing program only skips."""

import ast
from pathlib import Path

import pytest
import tomli

HERE = Path(__file__).parent
ROOT = HERE.parent
FILES = sorted(path for path in HERE.rglob("*.py"))
# Programs that a bare Debian with Python lacks. `tests.support.programs` skips then.
FOREIGN = {
    "apache2",
    "curl",
    "haproxy",
    "httpd",
    "ip",
    "keepalived",
    "nginx",
    "openssl",
    "promtool",
    "stunnel",
    "strace",
    "systemd-analyze",
    "unshare",
}
RUNS_TO_ITS_END = {"run", "call", "check_call", "check_output"}
# Threads and processes; `gateway.wait()` and its like have a deadline inside.
WAITS = {
    "join": (),
    "communicate": (),
    "wait": ("process", "running", "program", "child", "tracer"),
}


def lines(nodes):
    return [f"line {node.lineno}: {ast.unparse(node)[:100]}" for node in nodes]


def runs_without_deadline(nodes):
    """Calls of subprocess that wait for a program's end for ever."""
    for node in nodes:
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in RUNS_TO_ITS_END
            and ast.unparse(node.func.value) == "subprocess"
            and "timeout" not in {keyword.arg for keyword in node.keywords}
        ):
            yield node


def waits_without_deadline(nodes):
    """Calls that wait for the end of a thread or process for ever."""
    for node in nodes:
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and not (node.args or node.keywords)
            and node.func.attr in WAITS
            and ast.unparse(node.func.value).endswith(WAITS[node.func.attr] or ("",))
        ):
            yield node


def foreign_commands(nodes):
    """Command lines of foreign programs, as arguments or assigned to a name.

    `program("openssl")` and `run("openssl", …)` skip without it; a literal fails.
    """
    for node in nodes:
        if isinstance(node, ast.Call):
            found, kinds, least = node.args, (ast.List, ast.Tuple), 2
        elif isinstance(node, ast.Assign):
            found, kinds, least = [node.value], (ast.List,), 1
        else:
            continue
        for each in found:
            if (
                isinstance(each, kinds)
                and len(each.elts) >= least
                and isinstance(each.elts[0], ast.Constant)
                and each.elts[0].value in FOREIGN
            ):
                yield each


RULES = (runs_without_deadline, waits_without_deadline, foreign_commands)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HERE)))
def test_a_file_keeps_the_rules(path):
    """Each program and each wait has a deadline, and a missing program skips."""
    nodes = list(ast.walk(ast.parse(path.read_text())))  # once: it takes the most time
    assert {rule.__name__: lines(rule(nodes)) for rule in RULES} == {
        rule.__name__: [] for rule in RULES
    }


def test_the_lowest_versions_are_those_of_pyproject():
    pyproject = tomli.loads((ROOT / "pyproject.toml").read_text())
    project = pyproject["project"]
    wanted = [*pyproject["build-system"]["requires"], *project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        wanted += extra
    lines = (ROOT / ".ci" / "lowest.txt").read_text().splitlines()
    pinned = {line for line in lines if line and not line.startswith("#")}
    assert pinned == {each.replace(">=", "==") for each in wanted if ">=" in each}
