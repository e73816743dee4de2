"""Several files as one configuration, and the file and line of every problem."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relay.config.load import load, load_state_dir
from relay.errors import ConfigError

POOL = """
[pool.{name}]
machine_certificate = "{name}.pem"
machine_key = "{name}.pem"
backend_ca = "ca.pem"
[[pool.{name}.backend]]
route = "w1"
address = "192.0.2.1:443"
"""
ROUTE = """
[[listener]]
name = "https"
{listen}
[[listener.route]]
sni = ["{name}.example.com"]
pool = "{name}"
certificate = "{name}.pem"
private_key = "{name}.pem"
client_ca = "ca.pem"
"""


def tenant(name, listen=""):
    return ROUTE.format(name=name, listen=listen) + POOL.format(name=name)


MAIN = 'include = ["conf.d/*.toml"]\n' + tenant("main", 'listen = ["127.0.0.1:8443"]')


@pytest.fixture
def files(tmp_path):
    """`files(relay=…, **{"conf.d/a": …})`: writes files; returns the first one."""

    def write(relay=MAIN, **others):
        for name, text in {"relay": relay, **others}.items():
            file = tmp_path / f"{name}.toml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path / "relay.toml"

    return write


def refused(file: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(file)
    return [str(each).replace(str(file.parent), "") for each in caught.value.problems]


def test_tenants_in_files_add_routes_and_pools(files, tmp_path):
    loaded = load(files(**{"conf.d/b": tenant("b"), "conf.d/a": tenant("a")}))
    (listener,) = loaded.config.listener
    assert [route.pool for route in listener.route] == ["main", "a", "b"]
    assert list(loaded.config.pool) == ["main", "a", "b"]
    assert [file.name for file in loaded.places.files] == ["relay.toml", "a.toml", "b.toml"]
    assert loaded.config.source == tmp_path / "relay.toml"
    assert loaded.config.include == ("conf.d/*.toml",)


def test_a_relative_path_starts_at_its_own_file(files, tmp_path):
    loaded = load(
        files(**{"conf.d/a": tenant("a") + '[log]\naccess = "a.log"\n[relay]\nstate_dir = "st"\n'})
    )
    main, own = loaded.config.listener[0].route
    assert main.certificate == tmp_path / "main.pem"
    assert own.certificate == tmp_path / "conf.d/a.pem"
    assert loaded.config.pool["a"].backend_ca == tmp_path / "conf.d/ca.pem"
    assert loaded.config.log.access == str(tmp_path / "conf.d/a.log")
    assert loaded.config.relay.state_dir == tmp_path / "conf.d/st"
    assert load_state_dir(tmp_path / "relay.toml") == tmp_path / "conf.d/st"


def test_a_default_path_starts_at_the_first_file(files, tmp_path):
    file = files(**{"conf.d/a": tenant("a") + "[relay]\nworkers = 1\n"})
    assert load(file).config.relay.state_dir == tmp_path / "run"
    assert load_state_dir(file) == tmp_path / "run"


def test_tables_become_one_and_lists_of_tables_are_appended(files):
    more = '[[pool.main.backend]]\nroute = "w2"\naddress = "192.0.2.2:443"\n[log]\nlevel = "error"'
    config = load(files(f'{MAIN}\n[log]\naccess = ""', **{"conf.d/a": more})).config
    assert [each.route for each in config.pool["main"].backend] == ["w1", "w2"]
    assert (config.log.access, config.log.level) == ("", "error")


def test_a_key_that_is_set_twice_names_both_lines(files):
    twice = "[relay]\nworkers = 2\n"
    (line,) = refused(files(f"{MAIN}\n{twice}", **{"conf.d/a": f"\n\n{twice}"}))
    what = "relay.workers: is already set at /relay.toml:22; set it in one of the files only"
    assert line == f"/conf.d/a.toml:4: {what}"


def test_includes_without_end_are_refused(files):
    chain = {f"conf.d/{at:03}": f'include = ["{at + 1:03}.toml"]\n' for at in range(30)}
    (line,) = refused(files(MAIN.replace("*", "000"), **chain))
    assert line.startswith(
        "/conf.d/019.toml:1: include[0]: files are included more than 20 deep"
    ), line


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('[pool.main]\nbackend_ca = "x"', "/conf.d/a.toml:2: pool.main.backend_ca: is already"),
        ("[[pool]]\nx = 1", "/conf.d/a.toml:1: pool: is already set at"),
        ("pool = 3", "/conf.d/a.toml:1: pool: is already set at /relay.toml"),
        ('[[listener]]\nname = "https"\nidle_s = "x"', "/conf.d/a.toml:3: listener.https.idle_s"),
        ("[pool.a]\nbalance = 3", "/conf.d/a.toml:2: pool.a.balance: must be"),
        ("[pool.a]\n\nbalanc = 3", "/conf.d/a.toml:3: pool.a.balanc: unknown key; did you"),
        ("[pool.a]", "/conf.d/a.toml:1: pool.a.backend: is missing"),
        ("[nonsense]\nx = 1", "/conf.d/a.toml:1: nonsense: unknown key"),
        ("[log]\ninclude = []", "/conf.d/a.toml:2: log.include: unknown key here; it belongs at"),
        ("listener = 3", "/conf.d/a.toml:1: listener: is already set at /relay.toml:3"),
        ("x = = 3", "/conf.d/a.toml:1:5: "),
        ("\n\n\n[[x", "/conf.d/a.toml:4:4: "),
    ],
)
def test_a_problem_names_the_file_and_line(files, text, where):
    assert any(line.startswith(where) for line in refused(files(**{"conf.d/a": text})))


def test_problems_of_all_files_are_in_one_report(files):
    lines = refused(
        files(
            f"{MAIN}\n[relay]\nworker = 1",
            **{"conf.d/a": tenant("a") + "weight = -1", "conf.d/b": "[limits]\nconnections = 0"},
        )
    )
    assert sorted(line.partition(": ")[0] for line in lines) == [
        "/conf.d/a.toml:19",
        "/conf.d/b.toml:2",
        "/relay.toml:22",
    ]


def test_files_that_cannot_be_read_are_reported_alone(files, tmp_path):
    file = files(**{"conf.d/a": "x = = 1", "conf.d/b": "y =", "conf.d/c": tenant("main")})
    (tmp_path / "conf.d/d.toml").mkdir()
    (tmp_path / "conf.d/e.toml").symlink_to("nowhere")
    (tmp_path / "conf.d/f.toml").symlink_to("f.toml")
    lines = refused(file)
    assert [line.partition(".toml")[0] for line in lines[:5]] == [
        f"/conf.d/{name}" for name in "abdef"
    ]
    assert "is a directory" in lines[2]
    assert "does not exist; create it, or correct include at /relay.toml:1" in lines[3]


def test_an_included_file_may_include_others(files, tmp_path):
    nested = 'include = ["more/*.toml"]\n'
    loaded = load(files(**{"conf.d/a": nested, "conf.d/more/b": tenant("b")}))
    assert list(loaded.config.pool) == ["main", "b"]
    assert loaded.places.files[-1] == tmp_path / "conf.d/more/b.toml"


@pytest.mark.parametrize(
    ("relay", "others", "line"),
    [
        (["*.toml"], {}, "/relay.toml:1: include[0]: /relay.toml is the configuration file itself"),
        (
            ["conf.d/*.toml"],
            {"conf.d/a": 'include = ["../relay.toml"]'},
            "/conf.d/a.toml:1: include[0]: /conf.d/../relay.toml is the configuration file itself",
        ),
        (
            ["conf.d/*.toml"],
            {"conf.d/a": '\ninclude = ["../b.toml"]', "b": 'include = ["conf.d/a.toml"]'},
            "/b.toml:1: include[0]: /conf.d/../conf.d/a.toml is already included at /relay.toml:1",
        ),
        (
            ["conf.d/*.toml", "conf.d/a.toml"],
            {"conf.d/a": ""},
            "/relay.toml:1: include[1]: /conf.d/a.toml is already included at /relay.toml:1",
        ),
    ],
)
def test_a_file_is_not_included_twice(files, relay, others, line):
    text = MAIN.replace('["conf.d/*.toml"]', str(relay).replace("'", '"'))
    assert line in "\n".join(refused(files(text, **others)))


def test_a_link_to_a_file_is_that_file(files, tmp_path):
    file = files(**{"conf.d/a": tenant("a")})
    (tmp_path / "conf.d/b.toml").symlink_to("a.toml")
    assert "is already included at" in refused(file)[0]


def test_a_pattern_without_a_match_is_named(files):
    loaded = load(files())
    (problem,) = loaded.without_match
    assert problem.where == "include[0]"
    assert problem.what == "conf.d/*.toml matches no file"


def test_a_name_without_wildcards_must_exist(files):
    (line,) = refused(files(MAIN.replace("*", "a")))
    assert line.startswith("/conf.d/a.toml: does not exist; create it, or correct include at")


def test_hidden_files_and_backups_do_not_match(files, tmp_path):
    file = files(**{"conf.d/a": tenant("a")})
    for name in (".hidden.toml", "a.toml~", "a.toml.bak", "#a.toml#"):
        (tmp_path / "conf.d" / name).write_text("nonsense")
    assert len(load(file).places.files) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_directory_that_cannot_be_listed_is_a_problem(files, tmp_path):
    file = files(**{"conf.d/a": tenant("a")})
    (tmp_path / "conf.d").chmod(0)
    (line,) = refused(file)
    (tmp_path / "conf.d").chmod(0o755)
    assert "/conf.d cannot be read: Permission denied" in line


@pytest.mark.parametrize("wrong", ['"conf.d/*.toml"', "[1]", '[""]', "{}", '["a\\u0000b"]'])
def test_an_include_of_another_shape_is_refused(files, wrong):
    for relay, others in (
        (MAIN.replace('["conf.d/*.toml"]', wrong), {}),
        (MAIN, {"conf.d/a": f"include = {wrong}"}),
    ):
        lines = refused(files(relay, **others))
        assert all(": include" in line for line in lines), lines
        others.clear()


def test_a_listener_whose_file_comes_later_is_not_joined(files):
    """A listener without an address is refused if nothing before it has its name."""
    lines = refused(files(**{"conf.d/a": tenant("a").replace("https", "other")}))
    assert lines[0].startswith("/conf.d/a.toml:2: listener.other.listen: is missing")


def test_commands_find_the_state_dir_beside_mistakes(files, tmp_path):
    state = '[relay]\nstate_dir = "/run/x"\n'
    file = files(f"{MAIN}\n{state}nonsense = 1", **{"conf.d/a": "x = = 1"})
    assert load_state_dir(file) == Path("/run/x")
    file = files(MAIN, **{"conf.d/a": "x = = 1", "conf.d/b": state})
    assert load_state_dir(file) == Path("/run/x")
    (tmp_path / "conf.d/b.toml").unlink()
    with pytest.raises(ConfigError, match=r"conf.d/a.toml:1:5"):
        load_state_dir(file)
