"""The Debian package: installed, upgraded and purged in a root of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import relay
from tests.packaging.conftest import PATIENCE_S, run
from tests.support.gateway import ROOT
from tests.support.programs import find, needs

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a root"),
    needs("openssl", "unshare", "setpriv"),
    pytest.mark.skipif(
        not find("dpkg-deb") or not Path("/usr/bin/python3").exists(),
        reason="this is not Debian: there is no dpkg-deb, or no /usr/bin/python3",
    ),
]

# An overlay over this machine, in a mount namespace that ends with the shell.
LAYERS = """
set -eu
mount -t tmpfs -o size=1g tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
mkdir -p "$1/root/packages"
cp "$2" "$1/root/packages/one.deb"
cp "$3" "$1/root/packages/two.deb"
cp "$4" "$1/root/packages/root.sh"
exec chroot "$1/root" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    sh /packages/root.sh /packages/one.deb /packages/two.deb
"""


@pytest.fixture(scope="module")
def package(distributions, tmp_path_factory):
    """The package of the wheel; skips where Debian's Python cannot make one."""
    if subprocess.run(
        ["/usr/bin/python3", "-c", "import sys, venv; sys.exit(sys.version_info < (3, 11))"],
        timeout=60,
        check=False,
    ).returncode:
        pytest.skip("/usr/bin/python3 has no venv or is older than 3.11")
    to = tmp_path_factory.mktemp("deb")
    pip = Path(sys.executable).with_name("pip")
    maintainer = {"DEBFULLNAME": "Relay Tests", "DEBEMAIL": "tests@relay.example"}
    command = (ROOT / "conf" / "package" / "build-deb", "--fast", "--pip", pip)
    try:
        printed = run(*command, "--wheel", distributions.wheel, to, cwd="/", **maintainer)
    except AssertionError as error:
        if "No matching distribution found" in str(error):
            pytest.skip("pip cannot get the Python packages for /usr/bin/python3 here")
        raise
    return Path(printed.splitlines()[-1])


def next_version(package, to):
    """The same package as a later version, whose default configuration has changed."""
    run("dpkg-deb", "-R", package, to / "tree", cwd=to)
    control = to / "tree" / "DEBIAN" / "control"
    control.write_text(control.read_text().replace("-1\nArch", "-2\nArch"))
    with (to / "tree" / "etc" / "relay" / "relay.toml").open("a") as config:
        config.write("# a change of the package\n")
    run("dpkg-deb", "-Znone", "-b", to / "tree", to / "next.deb", cwd=to)
    shutil.rmtree(to / "tree")
    return to / "next.deb"


@pytest.fixture(scope="module")
def steps(package, tmp_path_factory):
    """What each step of root.sh printed."""
    at = tmp_path_factory.mktemp("root")
    following = next_version(package, tmp_path_factory.mktemp("next"))
    script = Path(__file__).with_name("root.sh")
    (at / "mnt").mkdir()
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", LAYERS, "sh"]
        + [str(each) for each in (at / "mnt", package, following, script)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    if "== install" not in done.stdout:
        pytest.skip(f"no root can be made here: {done.stderr.strip()}")
    told = dict(each.split("\n", 1) for each in done.stdout.split("== ")[1:])
    assert "end" in told, f"{done.stdout}\n{done.stderr}"
    return told


def test_it_installs_with_its_users(steps):
    assert "(relay)" in steps["users"]
    assert "(relay-admin)" in steps["users"]
    assert "750 root:relay /etc/relay/ssl" in steps["users"]


def test_an_installation_after_a_removal_gives_the_directory_to_the_group(steps):
    assert "750 root:relay /etc/relay/ssl" in steps["again"]


def test_logs_are_rotated_with_and_without_a_running_relay(steps):
    assert steps["rotate"].strip() == "no error"
    assert "systemctl kill --kill-who=main --signal=USR1 relay\n" in steps["upgrade"]


def test_a_removal_stops_the_relay_even_if_it_is_masked(steps):
    assert "systemctl --quiet stop relay.socket relay.service\n" in steps["remove"]


def test_the_command_runs_as_that_user(steps):
    assert steps["version"].startswith(f"relay {relay.__version__}, Python 3.")


def test_check_says_what_is_missing_and_then_accepts_it(steps):
    assert "exit code 78" in steps["check-before"]
    assert "/etc/relay/relay.toml: ok" in steps["check"]


def test_the_unit_calls_the_packaged_command(steps):
    unit = steps["unit"]
    assert unit.startswith("nothing about relay\n")
    assert "ExecStart=/usr/bin/relay start --config /etc/relay/relay.toml" in unit
    assert "/usr/local/bin/relay " not in unit.replace("ExecPaths=-/opt/mtls-relay -/usr/bin", "")


def test_bash_completes_and_no_link_is_broken(steps):
    assert steps["completion"].split() == ["example"]
    assert not steps["links"].strip()


def test_an_upgrade_keeps_process_and_configuration(steps):
    """dpkg asks nobody here: the changed file stays, and the new one lies beside it."""
    said = steps["upgrade"]
    assert "the same process serves" in said
    assert f"upgraded from relay {relay.__version__} to {relay.__version__}" in said
    assert "mtls-relay\t" in said
    assert "-2\n" in said
    assert "relay.toml\nrelay.toml.dpkg-dist\nssl\n1\n" in said
    assert "systemctl --quiet is-active relay.service" in said


def test_a_removal_keeps_configuration_and_logs(steps):
    for kept in ("relay.toml", "ssl", "access.log"):
        assert kept in steps["remove"]


def test_a_purge_leaves_only_the_administrators_keys(steps):
    keys = ("backends-ca", "clients-ca", "machine", "server")
    ssl = "etc/relay/ssl"
    assert steps["left"].split() == ["etc/relay", ssl, *(f"{ssl}/{each}.pem" for each in keys)]
