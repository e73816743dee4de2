"""What certificates say about lists is kept if it may be fetched and verified."""

from __future__ import annotations

import json
import os

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from relay.checker.crl_learned import (
    MOST,
    Learned,
    LearningSet,
    learned_file,
    read_learned,
)
from relay.demo.ca import Authority, LeafSpec
from relay.shared.backends_view import HEALTH_FILE
from relay.shared.list_reports import ListReport
from tests.support.pki import parsed

ROOT, OTHER = Authority.root("Root"), Authority.root("Other")
MIDDLE = ROOT.intermediate("Middle")
LOWER = MIDDLE.intermediate("Lower")
HOST = "pki.example.com"
URL = f"http://{HOST}/a.crl"


def der(authority):
    return authority.certificate.public_bytes(Encoding.DER)


@pytest.fixture
def world(tmp_path):
    """`world(hosts=…, cas=…)`: a checker's start in the same directory."""
    (tmp_path / HEALTH_FILE).parent.mkdir()
    fds = []

    def begin(hosts=(HOST,), cas=(ROOT,)):
        fds.append(os.open((tmp_path / HEALTH_FILE).parent, os.O_PATH | os.O_DIRECTORY))
        sets = [LearningSet(frozenset(hosts), tuple(parsed(ca.certificate) for ca in cas))]
        return Learned(fds[-1], sets if hosts else [])

    begin.state_dir = tmp_path
    yield begin
    for fd in fds:
        os.close(fd)


def test_a_report_is_kept_for_the_next_start_and_the_preparer(world):
    learned = world()
    report = ListReport((URL,), (der(LOWER), der(MIDDLE)))
    assert learned.take(report)
    assert not learned.take(report), "nothing new"
    for found in (learned, world(), read_learned(world.state_dir)):
        assert found.urls == (URL,)
        assert set(found.issuers) == {der(LOWER), der(MIDDLE)}


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example.com/a.crl",
        f"https://{HOST}/a.crl",
        f"ldap://{HOST}/cn=a",
        f"http://me@{HOST}/",
        f"http://{HOST}@169.254.169.254/",
        f"http://{HOST}.evil.example.com/",
        f"http://evil.example.com/#{HOST}",
        "http://127.0.0.1/",
        f"http://{HOST}:80\r\nX: y/",
        "",
    ],
)
def test_a_url_on_a_host_that_is_not_listed_is_not_learned(world, url):
    learned = world()
    assert not learned.take(ListReport((url,)))
    assert learned.urls == ()
    assert not learned_file(world.state_dir).exists()


def test_only_cas_below_a_configured_ca_are_learned(world):
    leaf = ROOT.issue(LeafSpec("leaf", purposes=("client",)))
    learned = world()
    for wrong in (
        der(OTHER),
        der(OTHER.intermediate("Middle")),
        leaf.certificate.public_bytes(Encoding.DER),
        der(LOWER),  # without the CA between
        der(ROOT),  # known anyway
        b"",
        b"\x30\x03\x02\x01\x05",
        os.urandom(1000),
    ):
        assert not learned.take(ListReport((), (wrong,)))
    assert learned.take(ListReport((), (der(LOWER), der(MIDDLE), der(OTHER))))
    assert set(learned.issuers) == {der(LOWER), der(MIDDLE)}


def test_the_oldest_make_room(world):
    learned = world()
    for number in range(MOST + 10):
        learned.take(ListReport((f"http://{HOST}/{number}",)))
    assert len(learned.urls) == MOST
    assert learned.urls[-1] == f"http://{HOST}/{MOST + 9}"
    assert world().urls == learned.urls


def test_the_file_changes_with_every_learned_list(world):
    learned = world()
    learned.take(ListReport((URL,)))
    file = learned_file(world.state_dir)
    contents = [file.read_text()]
    for digest in ("a", "b"):
        learned.fetched(URL, digest)
        contents.append(file.read_text())
    assert len(set(contents)) == 3
    learned.fetched(URL, "b")
    learned.fetched("http://another.example.com/", "c")
    assert file.read_text() == contents[-1]


def test_without_from_certificates_nothing_is_learned(world):
    world().take(ListReport((URL,), (der(MIDDLE),)))
    learned = world(hosts=())
    assert (learned.urls, learned.issuers) == ((), ())
    assert not learned.take(ListReport((URL,), (der(MIDDLE),)))


def test_what_the_file_claims_is_checked_again(world):
    world().take(ListReport((URL,), (der(MIDDLE),)))
    assert world(hosts=["other.example.com"]).urls == ()
    assert world(cas=[OTHER]).issuers == ()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"urls": {}, "issuers": 5}', "\xff"])
def test_a_damaged_file_counts_as_none(world, text):
    learned_file(world.state_dir).write_text(text, encoding="latin-1")
    assert world().urls == ()
    assert read_learned(world.state_dir).urls == ()


def test_a_directory_that_is_gone_is_told_once(world, caplog):
    learned = world()
    learned_file(world.state_dir).parent.rmdir()
    assert learned.take(ListReport((URL,)))
    learned.fetched(URL, "a")
    [record] = caplog.records
    assert record.getMessage() == (
        "learned.json cannot be written to relay.state_dir: No such file or directory; lists from"
        " certificates are not used until it can be; check the disk"
    )


def test_the_file_has_no_secret_and_everybody_may_read_it(world):
    world().take(ListReport((URL,), (der(MIDDLE),)))
    file = learned_file(world.state_dir)
    assert set(json.loads(file.read_text())) == {"urls", "issuers", "lists"}
    assert file.stat().st_mode & 0o777 == 0o644
