"""Loading a file: the values, and the problems of a file that cannot be used."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from relay.config import find, sources
from relay.config.find import find_config
from relay.config.key_path import listener_paths
from relay.config.load import load_config, load_state_dir
from relay.errors import ConfigError, Problem


def only_problem(path: Path) -> Problem:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


def test_a_right_configuration_has_its_values_and_defaults(load):
    config = load()
    assert config.relay.workers == 2
    assert config.timeouts.idle_s == 300
    assert config.listener[0].route[0].sni == ("app.example.com",)
    assert [each.route for each in config.pool["web"].backend] == ["w1", "w2"]


def test_relative_paths_start_at_the_files_directory(load, tmp_path):
    config = load(('access = "-"', 'access = "logs/a.log"'))
    assert config.source == tmp_path / "relay.toml"
    assert config.relay.state_dir == tmp_path / "run"
    assert config.log.access == str(tmp_path / "logs/a.log")
    assert config.listener[0].route[0].certificate == tmp_path / "ssl/server.pem"
    assert config.pool["rest"].backend_ca == tmp_path / "ssl/ca.pem"


def test_absolute_paths_stay_as_they_are(load):
    config = load(
        ("workers = 2", 'state_dir = "/srv/relay"'),
        ('access = "-"', 'access = "/var/log/%Y.log"'),
        ('"ssl/server.pem"', '"/etc/ssl/a.pem"'),
    )
    assert config.relay.state_dir == Path("/srv/relay")
    assert config.log.access == "/var/log/%Y.log"
    assert config.listener[0].route[0].certificate == Path("/etc/ssl/a.pem")


def test_a_relative_file_name_is_made_absolute_too(write, tmp_path, monkeypatch):
    write()
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("relay.toml"))
    assert config.source == tmp_path / "relay.toml"
    assert config.relay.state_dir.is_absolute()


@pytest.mark.parametrize(("access", "end"), [("%Y.log", "100%%/%Y.log"), ("a.log", "100%/a.log")])
def test_a_percent_sign_in_a_directory_is_not_a_field(right, tmp_path, access, end):
    directory = tmp_path / "100%"
    directory.mkdir()
    file = directory / "relay.toml"
    file.write_text(right.replace('access = "-"', f'access = "{access}"'))
    assert load_config(file).log.access == f"{tmp_path}/{end}"


def test_stdout_and_no_access_log_are_no_paths(load):
    assert load().log.access == "-"
    assert load(('access = "-"', 'access = ""')).log.access == ""


def test_server_names_and_fingerprints_are_normalised(load):
    pair = "AB:" * 31 + "CD"
    config = load(
        (
            '["app.example.com"]',
            (
                '[" App.EXAMPLE.com "]\n'
                f'allow = {{ fingerprint_sha256 = ["{pair}"], san_dns = ["*.Corp"] }}'
            ),
        )
    )
    route = config.listener[0].route[0]
    assert route.sni == ("app.example.com",)
    assert route.allow.fingerprint_sha256 == ("ab" * 31 + "cd",)
    assert route.allow.san_dns == ("*.corp",)


def test_a_byte_order_mark_is_no_mistake(write):
    file = write()
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_config(file).source == file


def test_the_key_path_of_a_listener_has_its_name():
    assert listener_paths(["https"]) == ["listener.https"]
    assert listener_paths(["a.b"]) == ['listener."a.b"']


def test_a_missing_file_is_one_problem(tmp_path):
    problem = only_problem(tmp_path / "none.toml")
    assert problem.where == str(tmp_path / "none.toml")
    assert "does not exist" in problem.what
    assert "--config" in problem.remedy


def test_a_directory_is_one_problem(tmp_path):
    assert "is a directory" in only_problem(tmp_path).what


def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in only_problem(tmp_path / "pipe").what


def test_an_endless_device_is_refused():
    assert "not a regular file" in only_problem(Path("/dev/zero")).what


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_one_problem(write):
    file = write()
    file.chmod(0)
    assert "may not be read" in only_problem(file).what


def test_a_name_that_no_file_can_have_is_one_problem():
    assert "cannot be read" in only_problem(Path("/tmp/a\0b")).what
    assert "cannot be read" in only_problem(Path("/tmp/" + "a" * 5000)).what


def test_a_huge_file_is_refused(tmp_path):
    with (tmp_path / "big.toml").open("wb") as file:
        file.truncate(sources.MAX_FILE_BYTES + 1)
    assert "larger than" in only_problem(tmp_path / "big.toml").what


def test_bytes_that_are_not_utf8_are_named_with_their_line(tmp_path):
    (tmp_path / "latin.toml").write_bytes(b"[log]\naccess = '\xe9'\n")
    problem = only_problem(tmp_path / "latin.toml")
    assert problem.where.endswith("latin.toml:2")
    assert "0xe9 on line 2" in problem.what


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("[relay]\nworkers = \n", 2, 11),
        ("[relay]\nworkers = 1\nworkers = 2\n", 3, 12),
        ('a = "x', 1, 7),
        ("[relay\n", 1, 7),
        ("a = [\n\n", 3, 1),
    ],
)
def test_a_syntax_error_has_line_and_column(tmp_path, text, line, column):
    file = tmp_path / "relay.toml"
    file.write_text(text)
    problem = only_problem(file)
    assert problem.where == f"{file}:{line}:{column}"
    assert f"line {line}, column {column}" in problem.what


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 5000, "a = " + "{b=" * 5000, "a = " + "9" * 5000, "a." * 5000 + "b = 1"],
    ids=["lists", "tables", "digits", "dots"],
)
def test_nesting_and_huge_numbers_are_problems_not_crashes(tmp_path, text):
    file = tmp_path / "relay.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert all("\n" not in str(each) and len(str(each)) < 1000 for each in caught.value.problems)


def test_the_given_file_is_used_whether_it_exists_or_not(tmp_path):
    assert find_config(tmp_path / "x.toml") == tmp_path / "x.toml"


def test_a_file_in_the_working_directory_is_found(write, tmp_path, monkeypatch):
    write()
    monkeypatch.chdir(tmp_path)
    assert find_config(None) == tmp_path / "relay.toml"


def test_all_paths_that_were_tried_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(find, "DEFAULT_PATHS", (Path("relay.toml"), tmp_path / "etc/relay.toml"))
    with pytest.raises(
        ConfigError, match=re.escape(f"{tmp_path}/relay.toml and {tmp_path}/etc/relay.toml")
    ):
        find_config(None)


def test_the_state_directory_is_found_in_a_file_with_mistakes(write, tmp_path):
    assert (
        load_state_dir(write(("workers = 2", 'workers = 0\nstate_dir = "state"')))
        == tmp_path / "state"
    )
    assert load_state_dir(write(("workers = 2", "wrokers = 2"))) == tmp_path / "run"
    assert load_state_dir(write(text="relay = 5")) == tmp_path / "run"


@pytest.mark.parametrize(
    ("text", "is_plain"),
    [
        ('[relay]\nstate_dir = "/run/relay"', True),
        ('[relay]\nstate_dir = "../a b/run"\nwrokers = 2', True),
        ('[relay]\nstate_dir = "$${VAR}"', False),
        ('[relay]\nstate_dir = "${VAR}"', False),
        ('[relay]\nstate_dir = ""', False),
        ("[relay]\nstate_dir = 5", False),
        ("[relay]\nworkers = 2", True),
        ("wrokers = 2", True),
        ('include = ["*.toml"]', False),
        ("relay = 5", False),
        ("[relay", False),
    ],
)
def test_a_plain_state_directory_is_found_without_the_model(write, text, is_plain):
    """Commands are quick then. In all other cases the whole file is looked at."""
    file = write(text=text)
    found = find.plain_state_dir(file)
    assert (found is not None) == is_plain
    if found is not None:
        assert found == load_state_dir(file)


@pytest.mark.parametrize(
    ("text", "state_dir"),
    [
        ('[relay]\nstate_dir = "state" # short\n[[listener]\n', "state"),
        ("[log]\nstate_dir = 'no'\n[ relay ]\nstate_dir='/run/x'\nx = \n", "/run/x"),
        ('[relay]\nworkers = 2\n[[listener]]\nstate_dir = "no"\nx = [', None),
        ('[relay]\nstate_dir = "${RUN}"\nx = [', None),
        ('include = "conf.d/*.toml"\nx = [', None),
        ("[relay]\nworkers = 2\nx = [", "run"),
    ],
)
def test_the_state_directory_is_found_in_a_file_that_is_not_toml(write, tmp_path, text, state_dir):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "control.sock").touch()
    found = find.plain_state_dir(write(text=text))
    assert found == (None if state_dir is None else tmp_path / state_dir)


@pytest.mark.parametrize("value", ["5", '""', '"a\\u0000b"', "[]"])
def test_an_invalid_state_directory_is_a_problem(write, value):
    with pytest.raises(ConfigError, match=r"relay\.state_dir: does not name a directory"):
        load_state_dir(write(("workers = 2", f"state_dir = {value}")))
