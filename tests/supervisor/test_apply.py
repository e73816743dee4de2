"""`relay apply`: the overrides become what a file says, all or nothing."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from relay.supervisor.control_client import ask
from tests.support.gateway import Gateway
from tests.support.tables import listener_table, pool_table, route_table


@pytest.fixture(scope="module")
def gateway(pki):
    backends = [f"127.0.0.1:{port}" for port in (1, 2, 3)]
    body = listener_table(route_table(pki)) + pool_table(pki, backends)
    with Gateway(body, relay={"workers": 1}) as gateway:
        yield gateway


@pytest.fixture
def apply(gateway, tmp_path):
    """`apply(document, "--merge")`: exit code, and the lines of stdout and stderr."""
    file = tmp_path / "overrides.json"

    def run(document, *options):
        file.write_text(document if isinstance(document, str) else json.dumps(document))
        said = gateway.command("apply", *options, str(file))
        lines = said.stderr.replace(str(file), "FILE").splitlines()
        return said.returncode, said.stdout.splitlines(), lines

    return run


def overrides(gateway):
    """Backend -> mode and weight."""
    return {
        one["backend"]: tuple(one[key] and one[key]["value"] for key in ("mode", "weight"))
        for one in ask(gateway.state_dir, "backends", 20)["overrides"]
    }


def entry(backend, pool="main", **more):
    return {"pool": pool, "backend": backend, **more}


def test_a_file_replaces_all_overrides_and_a_second_time_nothing(gateway, apply):
    apply({"overrides": [entry("w3", weight=7)]})
    document = {"overrides": [entry("w1", mode="drain", until="2100-01-01T00:00:00Z")]}
    document["overrides"].append(entry("w2", weight=20))
    first = apply(document)
    assert first == (
        0,
        [
            "main/w1: is now drain until 2100-01-01T00:00:00Z, was as configured",
            "main/w2: is now weight 20, was as configured",
            "main/w3: is now as configured, was weight 7",
        ],
        [],
    )
    assert overrides(gateway) == {"w1": ("drain", None), "w2": (None, 20)}
    before = (gateway.state_dir / "overrides.json").read_bytes(), gateway.log()
    assert apply(document) == (0, ["nothing changes: backends with overrides: 2"], [])
    assert ((gateway.state_dir / "overrides.json").read_bytes(), gateway.log()) == before
    kept = gateway.command("backend", "list", "--json").stdout
    again = subprocess.run(
        [*gateway.start_command[:3], "apply", "-", "--config", str(gateway.config)],
        input=kept,
        env=gateway.environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == "nothing changes: backends with overrides: 2\n"


def test_merge_leaves_the_others_and_dry_run_everything(gateway, apply):
    apply({"overrides": [entry("w1", mode="drain"), entry("w2", weight=20)]})
    change = {"overrides": [entry("w2", mode="disabled"), entry("w3", weight=3)]}
    code, said, _ = apply(change, "--merge", "--dry-run")
    assert code == 0
    assert said == [
        "main/w2: would be disabled, was weight 20",
        "main/w3: would be weight 3, was as configured",
    ]
    assert overrides(gateway) == {"w1": ("drain", None), "w2": (None, 20)}
    apply(change, "--merge")
    assert overrides(gateway) == {
        "w1": ("drain", None),
        "w2": ("disabled", None),
        "w3": (None, 3),
    }
    apply({"overrides": [entry("w2", mode="none")]}, "--merge")
    assert overrides(gateway) == {"w1": ("drain", None), "w3": (None, 3)}
    apply({"overrides": []})
    assert overrides(gateway) == {}


def test_unknown_backends_are_kept_with_a_warning_or_refused(gateway, apply):
    """Machines may have other configurations, and a reload may bring the backend."""
    document = {
        "overrides": [
            entry("w9", mode="drain"),
            entry("w1", pool="other", mode="drain"),
            entry("w1", mode="drain"),
        ]
    }
    code, said, warned = apply(document, "--strict")
    assert (code, said) == (64, [])
    assert warned == [
        "relay: FILE: main/w9: the configuration has no such backend",
        "relay: FILE: other/w1: the configuration has no such pool",
        "relay: nothing was changed; correct the file, then apply it again",
    ]
    assert overrides(gateway) == {}
    code, said, warned = apply(document)
    assert (code, len(said)) == (0, 3)
    assert "relay: main/w9: the configuration has no such backend; it is kept" in warned[0]
    assert len(overrides(gateway)) == 2  # main/w1 and other/w1 have one name
    assert "other/w1 is overridden, but" in gateway.command("backend", "list").stdout
    apply({"overrides": []})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "FILE: is not JSON: Expecting value in line 1, column 1"),
        ("[" * 100_000, "FILE: is nested too deeply"),
        ('{"overrides": [], "overrides": []}', 'FILE: has the key "overrides" twice'),
        ('{"overrides": [' + '{"pool": "' + "x" * 1_100_000 + '"}]}', "FILE: has overrides of"),
        ("[]", "FILE: it is not an object with a list"),
        ('{"overrides": [{"pool": "main"}]}', "FILE: overrides[0].backend: give the name"),
    ],
)
def test_a_broken_file_changes_nothing(gateway, apply, text, said):
    code, out, lines = apply(text)
    assert (code, out) == (64, [])
    assert said in lines[0]
    assert "nothing was changed" in lines[-1]


def test_a_file_that_is_not_there_is_named(gateway, tmp_path):
    said = gateway.command("apply", str(tmp_path / "none.json"))
    assert said.returncode == 64
    assert "none.json: cannot be read: No such file or directory" in said.stderr


def test_five_thousand_overrides_do_not_stop_the_supervisor(gateway):
    """They come in one request. Its answer takes a moment, and so does the next one."""
    entries = [entry(f"b{number}", mode="drain", weight=3) for number in range(5000)]
    reply = ask(gateway.state_dir, "apply", 20, document={"overrides": entries}, by="test")
    assert len(reply["changes"]) == 5000
    started = time.monotonic()
    assert ask(gateway.state_dir, "status", 20)["not_ready"] == ""
    assert time.monotonic() - started < 10
    reply = ask(gateway.state_dir, "apply", 20, document={"overrides": []}, by="test")
    assert (len(reply["changes"]), reply["overrides"]) == (5000, 0)
