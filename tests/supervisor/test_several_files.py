"""Real relays with a configuration in several files, and `relay check` of it."""

from __future__ import annotations

import json
import os

import pytest

from tests.support.client import talk

TENANT = """
[[listener]]
name = "https"
[[listener.route]]
sni = ["app.example.com"]
pool = "echo"
certificate = "{pki.gateway.certificate}"
private_key = "{pki.gateway.key}"
client_ca = "{pki.ca}"
"""


@pytest.fixture
def several(relay, body):
    """A relay that includes conf.d/*.toml, and takes values from elsewhere."""
    gateway = relay(start=False)
    address = body.partition('address = "')[2].partition('"')[0]
    text = body.replace(address, "${file:address}").replace('"127.0.0.1:0"', '"${HOST}:0"')
    text = text.replace("[[listener.route]]", '[[listener.route]]\nsni = ["main.example.com"]')
    gateway.environment["HOST"] = "127.0.0.1"
    gateway.write(text)
    gateway.config.write_text(f'include = ["conf.d/*.toml"]\n{gateway.config.read_text()}')
    (gateway.directory / "address").write_text(f"{address}\n")
    (gateway.directory / "conf.d").mkdir()
    return gateway


def findings(gateway, *arguments):
    """What `relay check --json` found that is not only for information."""
    done = gateway.command("check", "--json", *arguments)
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0 if found["ok"] else 78, "")
    return [each for each in found["findings"] if each["severity"] != "info"]


def test_a_relay_serves_and_reloads_what_several_files_say(several, pki, make_backend):
    several.start()
    with pytest.raises(OSError, match="unrecognized name"):
        talk(pki, several.port())
    tenant = several.directory / "conf.d" / "tenant.toml"
    tenant.write_text(f"[limits]\nconnection = 3\n{TENANT.format(pki=pki)}")
    refused = several.command("reload")
    (problem, _) = refused.stderr.splitlines()
    assert refused.returncode == 78
    assert problem == (
        f"relay: {tenant}:2: limits.connection: unknown key; did you mean connections?"
    )
    assert several.command("check").stderr == f"{problem}\n"
    assert f"reload refused: {problem.removeprefix('relay: ')}" in several.log()

    tenant.write_text(TENANT.format(pki=pki))
    (several.directory / "address").write_text(make_backend().address)
    assert several.command("reload").returncode == 0
    assert talk(pki, several.port()) == b"hello"
    checked = several.command("check")
    assert f"read {several.config}\nread {tenant}\n{several.config}: ok\n" in checked.stdout


def test_start_and_check_show_a_problem_in_one_form(several):
    wrong = several.directory / "conf.d" / "wrong.toml"
    wrong.write_text("\n[timeouts]\nidle_s = 0\n")
    del several.environment["HOST"]
    started, checked = several.command("start"), several.command("check")
    assert started.returncode == checked.returncode == 78
    assert started.stderr == checked.stderr
    assert f"relay: {wrong}:3: timeouts.idle_s: must be a number above 0" in started.stderr
    assert "listener.https.listen[0]: the environment variable HOST is not set" in started.stderr


def test_the_json_of_a_check_has_documented_members(several):
    done = several.command("check", "--json")
    found = json.loads(done.stdout)
    assert found.keys() == {"config", "files", "ok", "would_start", "findings"}
    assert found["config"] == str(several.config)
    assert found["files"] == [str(several.config)]
    assert (found["ok"], found["would_start"], done.returncode) == (True, True, 0)
    for each in found["findings"]:
        assert each.keys() == {
            "severity", "file", "line", "key", "what", "hint", "certificate", "subject",
            "temporary",
        }  # fmt: skip
        assert each["severity"] == "info"
        assert each["file"] == str(several.config)
    (certificate,) = [
        each for each in found["findings"] if each["key"].endswith(".machine_certificate")
    ]
    assert f"{several.config}:{certificate['line']}" == several.place("machine_certificate")
    assert certificate["subject"] == "CN=relay machine"


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [("x = = 1", 1, None), ("\n[log]\nlevel = 3", 3, "log.level")],
    ids=["syntax", "value"],
)
def test_a_configuration_that_is_refused_is_json_too(several, text, line, key):
    several.config.write_text(text)
    found = findings(several)
    assert (found[0]["line"], found[0]["key"]) == (line, key)
    assert found[0]["severity"] == "error"


def test_no_configuration_is_json_too(several):
    several.config.unlink()
    (found,) = findings(several)
    assert (found["file"], found["line"]) == (str(several.config), None)
    assert found["what"] == "does not exist"


def test_strict_refuses_a_pattern_without_a_match(several):
    assert findings(several) == []
    done = several.command("check", "--strict")
    assert done.returncode == 78
    line, end = done.stderr.splitlines()
    assert line == (
        f"relay: {several.config}:1: include[0]: conf.d/*.toml matches no file;"
        " correct the pattern, or remove it"
    )
    assert end.endswith("1 problem; the relay would start, and warns of this")
    (found,) = findings(several, "--strict")
    assert (found["severity"], found["key"]) == ("warning", "include[0]")


def test_a_strict_start_names_a_pattern_without_a_match(several):
    several.launch("sh", "-c", 'exec "$@" --strict', "strict").wait_until_it_accepts()
    assert f"{several.config}:1: include[0]: conf.d/*.toml matches no file" in several.log()


def test_strict_refuses_a_warning(relay, body):
    line = 'accept_proxy = { from = ["0.0.0.0/0"] }'
    gateway = relay(body.replace("[[listener]]", f"[[listener]]\n{line}", 1), start=False)
    (found,) = findings(gateway)
    assert found["severity"] == "warning"
    assert f"{found['file']}:{found['line']}" == gateway.place("accept_proxy")
    assert gateway.command("check").returncode == 0
    assert gateway.command("check", "--strict").returncode == 78


def test_offline_looks_only_at_files(relay, body, tmp_path):
    """An address, a name, a user and directories that this machine does not have."""
    text = body.replace("127.0.0.1:0", "192.0.2.1:443").replace(
        'address = "127.0.0.1:', 'address = "no-such-host.invalid:'
    )
    gateway = relay(
        text,
        start=False,
        relay={"user": "no-such-user", "state_dir": tmp_path / "file" / "run"},
        log={"access": "/no/such/directory/access.log"},
    )
    (tmp_path / "file").write_text("")
    assert gateway.command("check").returncode == 78
    assert findings(gateway, "--offline", "--strict") == []
    gateway.write(text.replace('backend_ca = "', 'backend_ca = "/absent'))
    assert "does not exist" in findings(gateway, "--offline")[0]["what"]


def test_offline_opens_no_socket(relay, body, tmp_path):
    """sitecustomize stands for a machine where nothing may use the network."""
    gateway = relay(body, start=False)
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "def hook(event, arguments):\n"
        "    if event in ('socket.bind', 'socket.connect', 'socket.sendto'):\n"
        "        raise RuntimeError(event)\n"
        "    if event == 'socket.getaddrinfo' and arguments[0] != '127.0.0.1':\n"
        "        raise RuntimeError(event)\n"
        "sys.addaudithook(hook)\n"
    )
    gateway.environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
    online = gateway.command("check")
    assert "RuntimeError" in online.stderr
    assert gateway.command("check", "--offline").returncode == 0


def test_an_included_file_of_another_user_is_a_warning(several):
    """So is a directory where another user could add one."""
    directory = several.directory / "conf.d"
    (directory / "a.toml").write_text("")
    (directory / "a.toml").chmod(0o666)
    (found,) = findings(several)
    assert f"{directory}/a.toml can be written by every user" in found["what"]
    assert found["key"] == "configuration"
    (directory / "a.toml").chmod(0o644)
    directory.chmod(0o777)
    (found,) = findings(several)
    assert f"{directory} can be written by every user" in found["what"]
    (directory / "a.toml").unlink()
    (found,) = findings(several)
    assert (found["key"], found["line"]) == ("include", 1)


def test_an_address_that_is_not_there_has_its_line(several):
    several.config.write_text(several.config.read_text().replace("${HOST}:0", "192.0.2.1:443"))
    done = several.command("start")
    assert done.returncode == 71
    lines = several.config.read_text().splitlines()
    line = lines.index('listen = ["192.0.2.1:443"]') + 1
    assert f'relay: {several.config}:{line}: listener "https": cannot' in done.stderr
