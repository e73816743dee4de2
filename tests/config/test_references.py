"""${NAME} and ${file:PATH}: what they give, and that files are not shown."""

from __future__ import annotations

import os

import pytest

from relay.config.load import load, load_state_dir
from relay.errors import ConfigError, Problem, StartupError


def set_level(value):
    return 'access = "-"', f"level = '{value}'"


def test_a_variable_is_part_of_a_string(load, monkeypatch):
    monkeypatch.setenv("HOST", "192.0.2.9")
    monkeypatch.setenv("PORT", "443")
    config = load(("192.0.2.1:443", "${HOST}:${PORT}"))
    assert config.pool["web"].backend[0].address == "192.0.2.9:443"


def test_a_dollar_sign_alone_is_no_reference(load):
    config = load(
        ('access = "-"', "access_format = '%h $h $1 $$ $$${h} $${file:x} $$$${h}'"),
    )
    assert config.log.access_format == "%h $h $1 $$ $${h} ${file:x} $$${h}"


def test_what_a_variable_has_is_not_replaced_again(load, monkeypatch):
    monkeypatch.setenv("A", "${B} $${B}")
    assert load(('access = "-"', "access_format = '%h ${A}'")).log.access_format == (
        "%h ${B} $${B}"
    )


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("workers", "3", 3),
        ("workers", "auto", "auto"),
        ("drain_timeout_s", "2.5", 2.5),
        ("drain_timeout_s", " 7\t", 7),
    ],
)
def test_a_number_may_come_from_the_environment(load, monkeypatch, key, text, value):
    monkeypatch.setenv("VALUE", text)
    config = load(("workers = 2", f'{key} = "${{VALUE}}"'))
    assert getattr(config.relay, key) == value


def test_a_boolean_may_come_from_the_environment(load, monkeypatch):
    monkeypatch.setenv("VALUE", "true")
    config = load(('route = "w1"', 'route = "w1"\nstandby = "${VALUE}"'))
    assert config.pool["web"].backend[0].standby is True


def test_a_number_needs_the_whole_string(problems, monkeypatch):
    monkeypatch.setenv("VALUE", "1")
    (problem,) = problems(("workers = 2", 'workers = "1${VALUE}"'))
    assert problem.what == 'must be a whole number from 1 to 256 or "auto", not "11"'


def test_an_empty_variable_is_an_empty_string(load, monkeypatch):
    monkeypatch.setenv("ADMIN", "")
    assert load(("127.0.0.1:9180", "${ADMIN}")).admin.listen == ""


@pytest.mark.parametrize(
    ("written", "what"),
    [
        ("${ABSENT}", "the environment variable ABSENT is not set"),
        ("${SEVERAL}", "the value of the environment variable SEVERAL has several lines"),
        ("${RETURN}", "the value of the environment variable RETURN has several lines"),
        ("${BYTES}", "the value of the environment variable BYTES is not UTF-8"),
        ("${ABSENT:-x}", '"${ABSENT:-x}" is not the name of an environment variable'),
        ("${}", '"${}" is not the name of an environment variable'),
        ("${1A}", '"${1A}" is not the name of an environment variable'),
        ("${ABSENT", '"${ABSENT" has no closing brace'),
        ("${A${B}}", '"${A$" has no closing brace'),
        ("${file:}", "${file:} does not name a file"),
        ("${file:absent}", "absent cannot be read: No such file or directory"),
        ("${file:several}", "several has several lines"),
        ("${file:empty}", "empty is empty"),
        ("${file:latin}", "latin is not UTF-8"),
        ("${file:zero}", "zero has a zero byte"),
        ("${file:big}", "big is larger than 65536 bytes"),
        ("${file:.}", "is a directory"),
        ("${file:/dev/null}", "is not a regular file"),
        ("${file:credential:x}", "names the credential x, but systemd gave"),
    ],
)
def test_a_wrong_reference_has_a_line_and_a_remedy(problems, monkeypatch, tmp_path, written, what):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setenv("SEVERAL", "a\nb")
    monkeypatch.setenv("RETURN", "a\rb")
    os.environb[b"BYTES"] = b"\xff"
    for name, data in {
        "several": b"a\nb\n",
        "empty": b"\n",
        "latin": b"\xe4",
        "zero": b"a\0b",
        "big": b"x" * 65537,
    }.items():
        (tmp_path / name).write_bytes(data)
    (problem,) = problems(("192.0.2.1:443", written))
    del os.environb[b"BYTES"]
    assert problem.where == "pool.web.backend[0].address"
    assert problem.place == (str(tmp_path / "relay.toml"), 28)
    assert what in problem.what
    assert problem.remedy
    assert "\n" not in str(problem)


def test_all_wrong_references_are_reported_at_once(problems):
    found = problems(
        ("192.0.2.1:443", "${ONE}"),
        ("workers = 2", 'workers = "${TWO}"\nnonsense = 1'),
        ('name = "https"', 'name = "${THREE}"'),
    )
    assert len(found) == 4


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_one_newline_at_the_end_of_a_file_is_left_out(load, tmp_path, end):
    (tmp_path / "value").write_bytes(b"\xef\xbb\xbf192.0.2.9:443" + end.encode())
    config = load(("192.0.2.1:443", "${file:value}"))
    assert config.pool["web"].backend[0].address == "192.0.2.9:443"


def test_a_credential_gives_a_value(load, monkeypatch, tmp_path):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "app").write_text("192.0.2.9:443")
    config = load(("192.0.2.1:443", "${file:credential:app}"))
    assert config.pool["web"].backend[0].address == "192.0.2.9:443"


SECRET = 'Tr0ub4dor"&3\\' + "x" * 80


@pytest.mark.parametrize(
    "edit",
    [
        ("192.0.2.1:443", "${file:s}"),
        ("192.0.2.1:443", "${file:s}:443"),
        ("192.0.2.1:443", "h:${file:s}"),
        ('name = "https"', 'name = "${file:s}"'),
        ('pool = "web"', 'pool = "${file:s}"'),
        ("app.example.com", "${file:s}"),
        ('access = "-"', 'access = "%Q${file:s}"'),
        ("127.0.0.1:9180", "${file:s}"),
        ("workers = 2", 'workers = "${file:s}"'),
        ("[pool.web]", '[pool.web]\nbalance = "${file:s}"'),
        ("[pool.web]", '[pool.web]\ncookie = "${file:s}"'),
        ("[relay]", 'include = ["${file:s}"]\n[relay]'),
        ('route = "w1"', 'route = "${file:s}"'),
    ],
    ids=lambda edit: edit[1][:30],
)
def test_no_problem_shows_what_a_file_has(problems, tmp_path, edit):
    (tmp_path / "s").write_text(SECRET)
    found = problems(edit)
    assert found
    text = "\n".join(map(str, found)).lower()
    assert SECRET[:8].lower() not in text
    assert "x" * 10 not in text
    assert "${file:s}" in text


def test_later_messages_do_not_show_it_either(write, tmp_path):
    """A certificate that cannot be read is found after the configuration is loaded."""
    (tmp_path / "s").write_text("hunter2")
    places = load(write(('"ssl/server.pem"', '"ssl/a${file:s}z"'))).places
    (problem,) = places.locate(
        [Problem("listener.https.route[0].certificate", "aHunter2z is missing", "find hunter2")]
    )
    assert problem.what == "a${file:s}z is missing"
    assert problem.remedy == "find ${file:s}"
    assert places.mask('no user "hunter2"; x') == 'no user "${file:s}"; x'
    assert problem.place == (str(tmp_path / "relay.toml"), 14)
    failure = places.locate_failure(StartupError("pool.web: hunter2", "x"))
    assert failure.what == f"{tmp_path}/relay.toml:22: pool.web: ${{file:s}}"


def test_the_state_dir_may_have_a_reference(write, monkeypatch, tmp_path):
    monkeypatch.setenv("STATE", "/run/state")
    file = write(("workers = 2", 'state_dir = "${STATE}"\nworkers = "${ABSENT}"'))
    assert str(load_state_dir(file)) == "/run/state"
    monkeypatch.delenv("STATE")
    with pytest.raises(ConfigError, match="STATE is not set"):
        load_state_dir(file)
