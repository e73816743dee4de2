"""A state directory that another user could change or replace is refused."""

from __future__ import annotations

import grp
import os
import pwd

import pytest

from relay.shared.password import hash_password
from relay.supervisor.path_ownership import find_weak_step
from tests.support.crls import make_crl
from tests.support.tables import listener_table, pool_table, route_table

only_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root, to make files of another user"
)
OTHER = "nobody"


def other():
    return pwd.getpwnam(OTHER).pw_uid


def directory(place, mode=0o755, uid=-1, gid=-1):
    place.mkdir()
    place.chmod(mode)
    os.chown(place, uid, gid)
    return place


def link(place, target, uid=-1):
    place.symlink_to(target)
    os.chown(place, uid, -1, follow_symlinks=False)
    return place


def group_of_another():
    """A group with a member that is neither root nor this user."""
    us = {0, os.geteuid()}
    for entry in pwd.getpwall():
        if entry.pw_uid not in us and entry.pw_gid != 0:
            try:
                return grp.getgrgid(entry.pw_gid).gr_gid
            except KeyError:
                continue
    pytest.skip("this system has no other user")


# Each creates a state directory below one that only this user can write, and has a
# part of the message.
BAD = {
    "every user may write it": (
        lambda at: directory(at / "run", 0o777),
        "{at}/run can be written by every user",
    ),
    "every user may make files in it": (
        lambda at: directory(at / "run", 0o1777),
        "can be written by every user",
    ),
    "another user owns it": (
        lambda at: directory(at / "run", uid=other()),
        f"{{at}}/run is owned by {OTHER}",
    ),
    "another user owns it and no user may write": (
        lambda at: directory(at / "run", 0o555, uid=other()),
        "owned by",
    ),
    "a group may write it": (
        lambda at: directory(at / "run", 0o775, gid=group_of_another()),
        "by its group",
    ),
    "every user may write its parent": (
        lambda at: directory(directory(at / "top", 0o777) / "run"),
        "{at}/top can be",
    ),
    "another user owns its parent": (
        lambda at: directory(directory(at / "top", uid=other()) / "run"),
        "{at}/top is owned by",
    ),
    "another user owns its parent's parent": (
        lambda at: directory(directory(directory(at / "top", uid=other()) / "low") / "run"),
        "{at}/top is owned by",
    ),
    "it is to be made where every user may write": (
        lambda at: directory(at / "top", 0o777) / "new" / "run",
        "{at}/top can be",
    ),
    "it is to be made in another user's": (
        lambda at: directory(at / "top", uid=other()) / "run",
        "{at}/top is owned by",
    ),
    "another user's link leads to it": (
        lambda at: link(directory(at / "tmp", 0o1777) / "run", directory(at / "real"), other()),
        f"{{at}}/tmp/run is a symbolic link of {OTHER}",
    ),
    "another user's link is on the way": (
        lambda at: (
            link(directory(at / "tmp", 0o1777) / "a", directory(at / "real"), other()) / "run"
        ),
        "is a symbolic link of",
    ),
    "our link leads where every user may write": (
        lambda at: link(at / "run", directory(directory(at / "top", 0o777) / "real")),
        "{at}/top can be written",
    ),
    "our link leads to nothing in another user's": (
        lambda at: link(at / "run", directory(at / "top", uid=other()) / "real"),
        "{at}/top is owned by",
    ),
    "the way leads back through another user's": (
        lambda at: (
            directory(directory(at / "top", uid=other()) / "down")
            / ".."
            / ".."
            / directory(at / "run").name
        ),
        "{at}/top is owned by",
    ),
}
GOOD = {
    "it is ours": lambda at: directory(at / "run"),
    "only we may enter it": lambda at: directory(at / "run", 0o700),
    "root's group may write it": lambda at: directory(at / "run", 0o775, gid=0),
    "it is to be made": lambda at: at / "new" / "run",
    "it is ours in a sticky directory": lambda at: directory(directory(at / "tmp", 0o1777) / "run"),
    "it is to be made in a sticky directory": lambda at: (
        directory(at / "tmp", 0o1777) / "new" / "run"
    ),
    "our link leads to it": lambda at: link(at / "run", directory(at / "real")),
    "our relative link leads to it": lambda at: link(
        directory(at / "top") / "run", f"../{directory(at / 'real').name}"
    ),
}


@only_root
@pytest.mark.parametrize(("make", "said"), BAD.values(), ids=BAD)
def test_a_path_that_another_user_can_change_has_a_weak_step(short_path, make, said):
    weak = find_weak_step(make(short_path))
    assert said.format(at=short_path) in str(weak)
    assert str(short_path) in weak.remedy


@pytest.mark.parametrize("make", GOOD.values(), ids=GOOD)
def test_a_path_that_only_this_user_and_root_can_change_has_none(short_path, make):
    if os.geteuid() != 0 and make is GOOD["root's group may write it"]:
        pytest.skip("only root gives files to its group")
    assert find_weak_step(make(short_path)) is None


def test_links_in_a_circle_are_an_error(short_path):
    link(short_path / "one", short_path / "two")
    link(short_path / "two", short_path / "one")
    with pytest.raises(OSError, match="symbolic links"):
        find_weak_step(short_path / "one" / "run")


@only_root
@pytest.mark.parametrize(
    "case", ["every user may write it", "another user owns it", "another user's link leads to it"]
)
def test_check_and_start_refuse_it_and_create_nothing(relay, short_path, case):
    make, said = BAD[case]
    gateway = relay(start=False, relay={"state_dir": make(short_path)})
    before = sorted(short_path.rglob("*"))
    checked = gateway.command("check")
    started = gateway.command("start")
    assert (checked.returncode, started.returncode) == (78, 71)
    (line,) = [line for line in checked.stderr.splitlines() if ": relay.state_dir: " in line]
    for text in (line, started.stderr):
        assert said.format(at=short_path) in text
        assert "or choose another relay.state_dir" in text
    assert sorted(short_path.rglob("*")) == before


@only_root
@pytest.mark.parametrize("command", ["check", "start"])
def test_files_that_others_could_change_get_one_warning_each(relay, pki, echo, short_path, command):
    theirs = directory(short_path / "theirs", uid=other())
    copies = {}
    for name, file in (
        ("ca", pki.ca),
        ("certificate", pki.machine.certificate),
        ("key", pki.machine.key),
    ):
        copies[name] = theirs / file.name
        copies[name].write_bytes(file.read_bytes())
        copies[name].chmod(0o600)
    copies["list"] = theirs / "ca.crl"
    copies["list"].write_bytes(make_crl(pki.authority))
    open_ca = short_path / "open.pem"
    open_ca.write_bytes(pki.ca.read_bytes())
    open_ca.chmod(0o666)
    route = route_table(pki, client_ca=open_ca)
    pool = pool_table(
        pki,
        [echo.address],
        backend_ca=copies["ca"],
        machine_certificate=copies["certificate"],
        machine_key=copies["key"],
        backend_crl=[copies["list"]],
    )
    gateway = relay(listener_table(route) + pool, start=False)
    if command == "start":
        gateway.start()
        text = gateway.log()
    else:
        checked = gateway.command("check")
        assert checked.returncode == 0, checked
        text = checked.stdout
    told = [line for line in text.splitlines() if "can be changed by another user" in line]
    assert len(told) == 2, told
    (directory_line,) = [line for line in told if f"{theirs} is owned by {OTHER}" in line]
    assert "pool.main." in directory_line
    assert "3 more files" in directory_line
    (file_line,) = [line for line in told if f"{open_ca} can be written by every user" in line]
    assert "listener.https.route[0].client_ca" in file_line
    assert f"chmod go-w {open_ca}" in file_line


def test_a_password_that_every_user_may_read_is_warned_about(relay, echo, pki, short_path):
    file = short_path / "password"
    file.write_text(hash_password("a good one") + "\n")
    body = listener_table(route_table(pki)) + pool_table(pki, [echo.address])
    gateway = relay(
        body, start=False, admin={"listen": "127.0.0.1:0", "user": "admin", "password_file": file}
    )
    for mode, warned in ((0o644, True), (0o640, False)):
        file.chmod(mode)
        checked = gateway.command("check")
        assert checked.returncode == 0, checked
        assert ("every user of this machine can read this password" in checked.stdout) is warned


def plant_a_link(place, secret):
    (place / "relay.pid").symlink_to(secret)


def plant_a_second_name(place, secret):
    os.link(secret, place / "relay.pid")


def plant_a_pipe(place, _secret):
    os.mkfifo(place / "relay.pid")


@pytest.mark.parametrize("plant", [plant_a_link, plant_a_second_name, plant_a_pipe])
def test_a_lock_that_was_planted_is_not_written_to(relay, short_path, plant):
    secret = short_path / "important"
    secret.write_text("unharmed")
    plant(directory(short_path / "run"), secret)
    gateway = relay(start=False, relay={"state_dir": short_path / "run"})
    for command, code in (("check", 78), ("start", 71)):
        done = gateway.command(command)
        assert done.returncode == code, done
        assert "relay.pid" in done.stderr or "Too many levels" in done.stderr
    assert secret.read_text() == "unharmed"


def test_what_is_made_on_the_way_is_for_us_alone_to_write(relay, short_path):
    before = os.umask(0)
    try:
        gateway = relay(start=False, relay={"state_dir": short_path / "new" / "deep" / "run"})
        gateway.state_dir = short_path / "new" / "deep" / "run"
        gateway.start()
    finally:
        os.umask(before)
    for place in (short_path / "new", short_path / "new" / "deep", gateway.state_dir):
        assert place.stat().st_mode & 0o777 == 0o755
    assert find_weak_step(gateway.state_dir) is None
    assert gateway.command("status").returncode == 0


@only_root
def test_root_learns_how_to_check_the_relay_of_another_user(relay):
    """systemd makes the directory for the unit's user, before it starts the relay."""
    gateway = relay(start=False)
    directory(gateway.state_dir, uid=other())
    checked = gateway.command("check")
    assert checked.returncode == 78
    assert "; if nobody starts the relay: runuser -u nobody -- relay check; otherwise " in (
        checked.stderr
    )
