"""Configurations as people write them become ones that `relay check` accepts."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from relay.supervisor.check import check_all
from relay.tls.certificates.findings import Level
from tests.importer.conftest import CONFIGS
from tests.support.httpd import httpd_program

NAMES = sorted(path.stem for path in CONFIGS.glob("*.conf"))
# Word processors, comments behind directives and mistakes are not for httpd.
NOT_HTTPDS = {"word-processor", "comments", "broken"}
# Has no certificates for backends and no CAs, as httpd needs none.
INCOMPLETE = {"plain-backends"}
MODULES = [
    "mpm_event",
    "access_compat",
    "alias",
    "auth_basic",
    "authn_core",
    "authn_file",
    "authz_core",
    "authz_host",
    "authz_user",
    "headers",
    "lbmethod_bybusyness",
    "lbmethod_byrequests",
    "macro",
    "proxy",
    "proxy_ajp",
    "proxy_balancer",
    "proxy_http",
    "proxy_wstunnel",
    "reqtimeout",
    "rewrite",
    "setenvif",
    "slotmem_shm",
    "socache_shmcb",
    "ssl",
    "status",
]


def faults(loaded):
    """Everything that `relay check` would count as a problem."""
    report = check_all(loaded, offline=True)
    errors = [str(one) for one in report.findings if one.level is Level.ERROR]
    return errors + [str(one) for one in report.problems]


def test_there_are_at_least_a_dozen():
    assert len(NAMES) >= 13


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_becomes_one_that_check_accepts(imported, name):
    result = imported(name)
    assert (result.code, result.err) == (0, "")
    found = faults(result.loaded)
    if name in INCOMPLETE:
        assert found
        assert all("by-hand" in each for each in found)
    else:
        assert found == []


@pytest.mark.parametrize("name", NAMES)
def test_every_line_has_one_verdict(imported, name):
    out = imported(name).out
    for row in out.splitlines():
        if row.startswith("/") and "is written; next: " not in row:
            words = (": same: ", ": better: ", ": by hand: ", ": lost: ")
            assert any(word in row for word in words), row
            assert row.isprintable()


@pytest.mark.parametrize("name", sorted(set(NAMES) - NOT_HTTPDS))
def test_httpd_accepts_the_configuration_too(filled, tmp_path, name):
    program = httpd_program()
    if program is None:
        pytest.skip("httpd with mod_proxy_balancer is not installed")
    modules = Path("/usr/lib/apache2/modules")
    path = filled((CONFIGS / f"{name}.conf").read_bytes())
    loaded = [
        f"LoadModule {each}_module {modules}/mod_{each}.so"
        for each in MODULES
        if (modules / f"mod_{each}.so").exists()
    ]
    head = [f'ServerRoot "{tmp_path}"', "ServerName gateway.example.com", *loaded]
    head += [f"PidFile {tmp_path}/pid", f"DefaultRuntimeDir {tmp_path}"]
    head += [f"ErrorLog {tmp_path}/main-error.log", f"Include {path}"]
    if b"Listen " not in path.read_bytes():
        head.append("Listen 443")
    main = tmp_path / "main.conf"
    main.write_text("\n".join(head) + "\n")
    done = subprocess.run(
        [program, "-t", "-f", str(main)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr


def test_private_keys_are_never_copied(imported):
    for name in NAMES:
        shutil.rmtree(imported(name).directory / "ssl", ignore_errors=True)
    result = imported("seed")
    made = [path for path in result.directory.rglob("*") if path.is_file()]
    assert {path.name for path in made} >= {"default-chain.pem", "httpslb-machine-chain.pem"}
    assert all(b"PRIVATE KEY" not in path.read_bytes() for path in made)


@pytest.mark.skipif(not Path("/etc/apache2").is_dir(), reason="/etc/apache2 is not there")
def test_debians_own_configuration_is_read_whole(tmp_path, capsys):
    """It includes by wildcard, has conditions, and variables from envvars."""
    from relay.importer.build import convert
    from relay.importer.disk import Disk
    from relay.importer.parser import Parser

    parser = Parser(Disk(), {}, {})
    parser.read_main("/etc/apache2/apache2.conf")
    assert len(parser.files) > 5
    from relay.cli.this_machine import ThisMachine

    lines = convert(parser, ThisMachine(), {}).report.lines(parser.files)
    assert not [line for line in lines if "is not defined" in line or "is it misspelt" in line]


def test_a_user_can_import_from_a_shell(filled, tmp_path, files):
    """The command, then `relay check`, as an operator does it."""
    import sys

    relay = Path(sys.executable).with_name("relay")
    path = filled((CONFIGS / "seed.conf").read_bytes(), "seed.conf")
    run = lambda *words: subprocess.run(  # noqa: E731
        [relay, *words], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    done = run("import-httpd", str(path), "--output", "my")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Traceback" not in done.stdout
    toml = tmp_path / "my" / "relay.toml"
    toml.write_text(toml.read_text().replace("127.0.0.1:9180", "127.0.0.1:0"))
    checked = run("check", "--config", "my/relay.toml")
    assert checked.returncode == 0 or os.geteuid() != 0, checked.stdout + checked.stderr
    again = run("import-httpd", str(path), "--output", "my")
    assert again.returncode == 74
    assert "is there already" in again.stderr
