"""What is uploaded: the source distribution is the tree, the wheel has all its data."""

from __future__ import annotations

import re
import sys
import zipfile

import pytest

from relay.cli.shipped import shipped_files
from tests.packaging.conftest import run
from tests.support.gateway import ROOT

# What a build adds to the tree.
MADE = re.compile(r"PKG-INFO|.*\.pyc")


def files_below(directory):
    found = (each for each in directory.rglob("*") if each.is_file())
    return {str(each.relative_to(directory)) for each in found}


def test_the_source_distribution_is_the_whole_tree(distributions):
    """No file of the tree is left out, and none of this machine gets in."""
    if not (ROOT / ".git").exists():
        pytest.skip("this tree is no git checkout")
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    present = {name for name in listed.splitlines() if (ROOT / name).is_file()}
    packed = {name for name in files_below(distributions.unpacked) if not MADE.fullmatch(name)}
    assert packed == present


def test_the_source_distribution_passes_its_own_tests(distributions):
    """A bounded part: the tests of the reference and of the schema."""
    pytest_itself = (sys.executable, "-m", "pytest", "-q", "-p", "no:xdist")
    some = ("tests/config/test_reference.py", "tests/config/test_schema.py")
    assert " passed" in run(*pytest_itself, *some, cwd=distributions.unpacked)


def test_an_index_takes_both_without_a_warning(distributions):
    files = (distributions.source, distributions.wheel)
    said = run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=ROOT)
    assert said.count("PASSED") == 2


def test_the_page_on_an_index_has_no_dead_link(distributions):
    """A link into the source tree would lead nowhere there; it has become a path."""
    with zipfile.ZipFile(distributions.wheel) as wheel:
        (name,) = (each for each in wheel.namelist() if each.endswith(".dist-info/METADATA"))
        page = wheel.read(name).decode().partition("\n\n")[2]
    assert page.startswith("# relay\n")
    targets = re.findall(r"\]\(([^)]*)\)", page)
    assert [each for each in targets if not each.startswith(("https://", "#"))] == []
    paths = re.findall(r"`([\w./-]+\.(?:md|toml))`", page)
    assert {"conf/relay.toml", "docs/operation.md", "CONTRIBUTING.md"} <= set(paths)
    assert [each for each in paths if not (ROOT / each).is_file()] == []


def test_the_wheel_has_every_shipped_file_as_it_is(distributions):
    assert distributions.relay("example") == run(sys.executable, "-m", "relay", "example", cwd=ROOT)
    for name, path in (
        ("relay.toml", "conf/relay.toml"),
        ("relay.service", "systemd/relay.service"),
        ("changelog", "CHANGELOG.md"),
    ):
        assert distributions.relay("example", name) == (ROOT / path).read_text()
    with zipfile.ZipFile(distributions.wheel) as wheel:
        inside = {each.partition("relay/shipped/")[2] for each in wheel.namelist()} - {""}
    inside = {each for each in inside if not each.startswith("conf/package/")}
    assert inside == {str(each.relative_to(ROOT)) for each in shipped_files().values()}


def test_a_directory_of_examples_is_written_once(distributions, tmp_path):
    to = tmp_path / "mine"
    distributions.relay("example", "examples", "--to", to)
    assert files_below(to) == files_below(ROOT / "conf" / "examples")
    with pytest.raises(AssertionError, match=r"minimal\.toml exists already; remove it"):
        distributions.relay("example", "minimal", "--to", to)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("minmal",), "there is no example minmal; did you mean examples/minimal.toml?"),
        (("zzz",), "there is no example zzz; `relay example` lists the names"),
        (("relay",), "relay may be each of these files: relay.toml, "),
        (("examples",), "write them with --to DIR, or name one: apache-vhost.toml,"),
        (("--to", "x"), "--to needs the NAME"),
        (("/etc/passwd",), "there is no example /etc/passwd"),
        (("../LICENSE",), "there is no example ../LICENSE"),
    ],
)
def test_a_name_that_is_not_one_file_is_refused(arguments, said):
    with pytest.raises(AssertionError, match=re.escape(said)):
        run(sys.executable, "-m", "relay", "example", *arguments, cwd=ROOT)
