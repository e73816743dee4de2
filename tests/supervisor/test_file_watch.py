"""What the watcher makes of fingerprints, and of files that really change."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from relay.files import fingerprint
from relay.supervisor.file_watch import FileWatch

CERTIFICATE, KEY, CA = Path("/c"), Path("/k"), Path("/ca")
OLD, NEW, NEWER = (1, 1), (1, 2), (1, 3)


def test_a_change_counts_when_two_polls_are_equal():
    watch = FileWatch([[CA]], {CA: OLD})
    assert [watch.poll({CA: seen}) for seen in (OLD, NEW, NEWER, NEWER, NEWER)] == [
        [],
        [],
        [],
        [0],
        [],
    ]


def test_a_pair_counts_when_both_files_have_settled():
    watch = FileWatch([[CERTIFICATE, KEY], [CA]], {CERTIFICATE: OLD, KEY: OLD, CA: OLD})
    seen = {CERTIFICATE: OLD, KEY: OLD, CA: OLD}
    assert watch.poll(seen) == []
    assert watch.poll(seen | {CERTIFICATE: NEW, CA: NEW}) == []
    assert watch.poll(seen | {CERTIFICATE: NEW, KEY: NEW, CA: NEW}) == [1]
    assert watch.poll(seen | {CERTIFICATE: NEW, KEY: NEW, CA: NEW}) == [0]


def test_a_file_that_changed_before_the_first_poll_counts():
    """It was read at the start, and changed before the watcher ran."""
    watch = FileWatch([[CA]], {CA: OLD})
    assert watch.poll({CA: NEW}) == []
    assert watch.poll({CA: NEW}) == [0]


def test_a_file_that_was_not_known_is_taken_as_it_is_found():
    watch = FileWatch([[CA]])
    assert watch.poll({CA: OLD}) == watch.poll({CA: OLD}) == []
    watch.poll({CA: NEW})
    assert watch.poll({CA: NEW}) == [0]


def test_a_file_of_two_sets_concerns_both():
    watch = FileWatch([[CERTIFICATE, KEY], [CERTIFICATE]], {CERTIFICATE: OLD, KEY: OLD})
    watch.poll({CERTIFICATE: NEW, KEY: OLD})
    assert watch.poll({CERTIFICATE: NEW, KEY: OLD}) == [0, 1]
    assert watch.paths == (CERTIFICATE, KEY)


def kubernetes(directory: Path, version: str) -> Path:
    """A Secret volume: ..data is a link to a directory, and is renamed into place."""
    real = directory / f"..{version}"
    real.mkdir()
    (real / "tls.crt").write_text(version)
    link = directory / "..data_tmp"
    link.symlink_to(real.name)
    link.rename(directory / "..data")
    file = directory / "tls.crt"
    if not file.is_symlink():
        file.symlink_to("..data/tls.crt")
    return file


def written_in_place(directory: Path, version: str) -> Path:
    """Of the same length and with the same times, as cp -p and rsync -t leave it."""
    file = directory / "file"
    file.write_text(version)
    os.utime(file, ns=(1, 1))
    return file


def renamed(directory: Path, version: str) -> Path:
    file = directory / "file"
    file.with_suffix(".new").write_text(version)
    os.utime(file.with_suffix(".new"), ns=(1, 1))
    return file.with_suffix(".new").rename(file)


def linked(directory: Path, version: str) -> Path:
    (directory / version).write_text("same")
    file = directory / "file"
    file.unlink(missing_ok=True)
    file.symlink_to(version)
    return file


@pytest.mark.parametrize("make", [kubernetes, written_in_place, renamed, linked])
def test_every_kind_of_change_has_another_fingerprint(tmp_path, make):
    before = fingerprint(make(tmp_path, "one"))
    assert len(before) == 5
    file = make(tmp_path, "two")
    after = fingerprint(file)
    assert after != before
    assert fingerprint(file) == after


def test_a_file_that_is_gone_has_a_fingerprint_of_its_own(tmp_path):
    file = tmp_path / "directory" / "file"
    file.parent.mkdir()
    assert fingerprint(file) == (errno.ENOENT,)
    file.write_text("")
    assert len(fingerprint(file)) == 5
    shutil.rmtree(file.parent)
    assert fingerprint(file) == (errno.ENOENT,)
    file.parent.write_text("")
    assert fingerprint(file) == (errno.ENOTDIR,)
