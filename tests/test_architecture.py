"""The module map stays true: modules, their length, their imports, and the walk."""

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "relay"
WALK = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
LINES = 300

# What computes on values alone. Nothing of it asks the kernel, the clock or chance.
PURE = {
    "__future__",
    "bisect",
    "collections",
    "dataclasses",
    "enum",
    "functools",
    "hashlib",
    "heapq",
    "ipaddress",
    "itertools",
    "math",
    "operator",
    "re",
    "struct",
    "typing",
}
# Libraries that have one place.
SOLE_IMPORTERS = {
    "OpenSSL": ("relay.tls.",),
    "cryptography": ("relay.tls.", "relay.demo.ca"),
    "pydantic": "relay.config.",
    "starlette": "relay.admin.",
    "uvicorn": "relay.admin.",
    "jinja2": "relay.admin.",
    "prometheus_client": "relay.admin.",
    "click": "relay.cli.",
}


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = {
    name_of(path): path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"
}
PACKAGES = {name_of(path.parent): path for path in sorted(PACKAGE.rglob("__init__.py"))}


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def docstring(path):
    return ast.get_docstring(tree(path)) or ""


@cache
def imported(path):
    """Full names of all imported modules. `from a import b` counts as a and a.b."""
    return tuple(imported_in(tree(path)))


def imported_in(module):
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def is_for_the_type_checker(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imported_at_run_time(path):
    """As `imported`, without what stands under `if TYPE_CHECKING`."""
    module = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for node in ast.walk(module):
        if hasattr(node, "body") and isinstance(node.body, list):
            node.body = [each for each in node.body if not is_for_the_type_checker(each)]
    return imported_in(module)


def circles(graph):
    """The strongly connected components of more than one node (Tarjan's algorithm)."""
    order, low, path, found = {}, {}, [], []

    def visit(node):
        order[node] = low[node] = len(order)
        path.append(node)
        for child in graph[node]:
            if child not in order:
                visit(child)
            if child in path:
                low[node] = min(low[node], low[child])
        if low[node] == order[node]:
            at = path.index(node)
            if len(path) - at > 1:
                found.append(sorted(path[at:]))
            del path[at:]

    for node in graph:
        if node not in order:
            visit(node)
    return found


def resolve(name):
    """The module or attribute of a dotted name."""
    parts = name.split(".")
    found = importlib.import_module(parts[0])
    for at, part in enumerate(parts[1:], 2):
        prefix = ".".join(parts[:at])
        found = (
            importlib.import_module(prefix)
            if prefix in MODULES or prefix in PACKAGES
            else getattr(found, part)
        )
    return found


def next_symbols():
    for name, path in MODULES.items():
        for line in re.findall(r"^Next:(.*)$", docstring(path), re.MULTILINE):
            for symbol in re.findall(r"relay(?:\.\w+)+", line) or [line.strip()]:
                yield pytest.param(symbol, id=f"{name} -> {symbol}")


@pytest.mark.parametrize("symbol", re.findall(r"`(relay(?:\.\w+)+)`", WALK))
def test_the_walk_names_what_exists(symbol):
    assert resolve(symbol) is not None


@pytest.mark.parametrize("symbol", list(next_symbols()))
def test_where_a_connection_goes_next_exists(symbol):
    assert resolve(symbol) is not None


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_does_and_is_short_enough_to_read(name):
    first = docstring(MODULES[name]).partition("\n")[0]
    assert first.endswith((".", ":")), first
    lines = MODULES[name].read_text(encoding="utf-8").count("\n")
    assert lines <= LINES


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_holds_a_docstring_and_nothing_else(name):
    docstring_node, *rest = tree(PACKAGES[name]).body
    assert isinstance(docstring_node, ast.Expr)
    assert docstring(PACKAGES[name])
    assert [target.id for node in rest for target in node.targets] == (
        ["__version__"] if name == "relay" else []
    )


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("relay.core.")])
def test_the_core_imports_only_values(name):
    for module in imported(MODULES[name]):
        assert module.partition(".")[0] in PURE or module.startswith(
            ("relay.core", "relay.config.pool_model", "relay.errors")
        ), f"{name} imports {module}"


@pytest.mark.parametrize("library", SOLE_IMPORTERS)
def test_a_library_is_imported_in_its_one_place(library):
    importers = {
        name
        for name, path in MODULES.items()
        if any(module.partition(".")[0] == library for module in imported(path))
    }
    assert {name for name in importers if not name.startswith(SOLE_IMPORTERS[library])} == set()


def test_the_admin_process_loads_neither_models_nor_pydantic():
    """They would take a third of its start and a quarter of its memory."""
    found, ahead = set(), ["relay.admin.main"]
    while ahead:
        new = set(imported_at_run_time(MODULES[ahead.pop()])) - found
        found |= new
        ahead += new & MODULES.keys()
    assert found & {"pydantic", "relay.config.model", "relay.config.section"} == set()
    assert "relay.shared.snapshot" in found


def test_no_modules_import_each_other_in_a_circle():
    graph = {
        name: sorted({module for module in imported_at_run_time(path) if module in MODULES})
        for name, path in MODULES.items()
    }
    assert circles(graph) == []


def test_one_circle_of_types_is_left():
    """A worker has sessions, and a session its worker; one way is not for run time."""
    graph = {
        name: sorted({module for module in imported(path) if module in MODULES})
        for name, path in MODULES.items()
    }
    of_types = ["counters", "log_record", "session", "worker"]
    assert circles(graph) == [[f"relay.worker.{name}" for name in of_types]]


def test_circles_are_found():
    graph = {"a": ["b"], "b": ["c"], "c": ["b", "d"], "d": [], "e": ["e"]}
    assert circles(graph) == [["b", "c"]]
