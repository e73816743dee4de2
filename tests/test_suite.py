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


def calls(path):
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def lines(nodes):
    return [f"line {node.lineno}: {ast.unparse(node)[:100]}" for node in nodes]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HERE)))
def test_every_program_that_is_run_has_a_deadline(path):
    found = [
        call
        for call in calls(path)
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in RUNS_TO_ITS_END
        and ast.unparse(call.func.value) == "subprocess"
        and "timeout" not in {keyword.arg for keyword in call.keywords}
    ]
    assert lines(found) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HERE)))
def test_every_wait_for_an_end_has_a_deadline(path):
    found = []
    for call in calls(path):
        if call.args or call.keywords or not isinstance(call.func, ast.Attribute):
            continue
        of = ast.unparse(call.func.value)
        if call.func.attr in WAITS and of.endswith(WAITS[call.func.attr] or ("",)):
            found.append(call)
    assert lines(found) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HERE)))
def test_no_foreign_program_is_taken_for_granted(path):
    """`program("openssl")` and `run("openssl", …)` skip without it; a literal fails."""
    found = [
        node
        for call in calls(path)
        for node in call.args
        if isinstance(node, ast.List | ast.Tuple)
        and len(node.elts) > 1
        and isinstance(node.elts[0], ast.Constant)
        and node.elts[0].value in FOREIGN
    ]
    found += [
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.List)
        and node.value.elts
        and isinstance(node.value.elts[0], ast.Constant)
        and node.value.elts[0].value in FOREIGN
    ]
    assert lines(found) == []


def test_the_lowest_versions_are_those_of_pyproject():
    pyproject = tomli.loads((ROOT / "pyproject.toml").read_text())
    project = pyproject["project"]
    wanted = [*pyproject["build-system"]["requires"], *project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        wanted += extra
    lines = (ROOT / ".ci" / "lowest.txt").read_text().splitlines()
    pinned = {line for line in lines if line and not line.startswith("#")}
    assert pinned == {each.replace(">=", "==") for each in wanted if ">=" in each}
