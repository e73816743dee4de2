"""Certificates and CAs that are replaced while a generation runs."""

import os
import shutil
import socket
import traceback

import pytest

from relay.demo.ca import Authority, LeafSpec
from relay.errors import Side
from relay.files import Files
from relay.tls import stream
from relay.tls.certificates.pem import load_authorities, load_key_pair
from relay.tls.renewal import Renewal, renew
from tests.support.handshakes import (
    NAME,
    VERSIONS,
    accept_on,
    allow,
    begin_session,
    client_context,
    generation_of,
    meet_backend,
    meet_client,
    server_context,
    session_of,
)
from tests.support.pki import BACKEND_NAME, write

both_versions = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)


@pytest.fixture
def paths(pki, tmp_path):
    """Copies of the files of a route, which a test may replace."""
    for name, source in (
        ("crt", pki.gateway.certificate),
        ("key", pki.gateway.key),
        ("ca", pki.ca),
    ):
        shutil.copy(source, tmp_path / name)
    return tmp_path


@pytest.fixture
def generation(pki, paths):
    return generation_of(
        pki,
        routes=(
            {
                "certificate": paths / "crt",
                "private_key": paths / "key",
                "client_ca": paths / "ca",
            },
        ),
        machine_certificate=paths / "crt",
        machine_key=paths / "key",
        backend_ca=paths / "ca",
    )


def renewal_of(paths, *, pair=False, cas=False):
    """What the files are now."""
    files, pairs = Files(), frozenset()
    if pair:
        load_key_pair("", paths / "crt", paths / "key", files)
        pairs = frozenset([(paths / "crt", paths / "key")])
    if cas:
        load_authorities("", paths / "ca", files)
    return Renewal(files.contents, pairs, frozenset([paths / "ca"] if cas else []))


def shown(meeting):
    """The serial number of the certificate that the client sees."""
    return int(meeting.peer.getpeercert()["serialNumber"], 16)


def reissue(pki, paths):
    """Replace the relay's certificate; returns the serial number of the new one."""
    issued = pki.authority.issue(LeafSpec(cn="gateway", dns=(NAME,), purposes=("server", "client")))
    made = write(paths, "new", issued)
    made.certificate.replace(paths / "crt")
    made.key.replace(paths / "key")
    return issued.certificate.serial_number


@both_versions
def test_a_renewed_certificate_is_shown_and_tickets_go_on(pki, paths, generation, version):
    route = generation.routes["https"].find(NAME)
    context = client_context(pki, pki.client, version)
    session = begin_session(route, context)
    serial = reissue(pki, paths)
    renew(generation, renewal_of(paths, pair=True))
    with meet_client(route, context) as meeting:
        assert (meeting.reason, meeting.resumed, shown(meeting)) == ("done", False, serial)
        later = session_of(meeting)
    for each in (session, later):
        with meet_client(route, context, session=each) as meeting:
            assert (meeting.reason, meeting.resumed) == ("done", True)


@both_versions
def test_a_removed_ca_neither_verifies_nor_resumes(pki, paths, generation, version):
    route = generation.routes["https"].find(NAME)
    context = client_context(pki, pki.client, version)
    session = begin_session(route, context)
    foreign = pki.foreign_ca.read_text()
    (paths / "ca").write_text(foreign)
    renew(generation, renewal_of(paths, cas=True))
    for each in (session, None):
        with meet_client(route, context, session=each) as meeting:
            assert (meeting.reason, meeting.resumed) == ("unknown_ca", False)


@both_versions
def test_another_ca_in_the_file_asks_for_a_full_handshake_once(pki, paths, generation, version):
    route = generation.routes["https"].find(NAME)
    context = client_context(pki, pki.client, version)
    session = begin_session(route, context)
    (paths / "ca").write_text(pki.ca.read_text() + pki.foreign_ca.read_text())
    renew(generation, renewal_of(paths, cas=True))
    with meet_client(route, context, session=session) as meeting:
        assert (meeting.reason, meeting.resumed) == ("done", False)
        later = session_of(meeting)
    with meet_client(route, context, session=later) as meeting:
        assert (meeting.reason, meeting.resumed) == ("done", True)
    assert len(route.trust.cas.keys) == 2


def test_a_backend_sees_the_renewed_machine_certificate(pki, paths, generation):
    (target,) = generation.targets["main"]
    serial = reissue(pki, paths)
    before = target.context
    renew(generation, renewal_of(paths, pair=True))
    assert target.context is not before
    with meet_backend(target, server_context(pki, pki.backend)) as meeting:
        assert (meeting.reason, shown(meeting)) == ("done", serial)


def test_a_backend_of_a_removed_ca_is_refused(pki, paths, generation):
    (target,) = generation.targets["main"]
    Authority.root("Another CA").write(paths / "ca")
    renew(generation, renewal_of(paths, cas=True))
    with meet_backend(target, server_context(pki, pki.backend)) as meeting:
        assert meeting.reason == "backend_unknown_ca"


def test_a_ticket_of_one_process_resumes_in_another_after_a_renewal(pki, paths, generation):
    """Each builds its own material; the ticket owner is from before the fork."""
    route = generation.routes["https"].find(NAME)
    context = client_context(pki, pki.client)
    reissue(pki, paths)
    renewal = renewal_of(paths, pair=True)
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            theirs.close()
            renew(generation, renewal)
            connection = accept_on(route, ours)
            assert stream.handshake(connection, Side.INBOUND) is stream.DONE
            code = 0 if stream.resumed(connection) else 3
        except BaseException:  # noqa: BLE001 (a child must not return)
            traceback.print_exc()
        finally:
            os._exit(code)
    ours.close()
    with theirs:
        renew(generation, renewal)
        session = begin_session(route, context)
        theirs.settimeout(10)
        with context.wrap_socket(theirs, server_hostname=NAME, session=session) as peer:
            assert peer.session_reused
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_handshake_that_has_begun_ends_with_the_old_material(pki, paths, generation):
    route = generation.routes["https"].find(NAME)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        begun = accept_on(route, ours)
        for _ in range(3):
            reissue(pki, paths)
            renew(generation, renewal_of(paths, pair=True))
        assert stream.handshake(begun, Side.INBOUND) is stream.STEP_WANT_READ
        stream.free(begun, established=False)


@both_versions
def test_the_rules_for_chains_outlive_a_renewal(pki, tmp_path, version):
    """An issuing CA alone, and a certificate for servers, before and after."""
    ca = tmp_path / "ca"
    first, second = (pki.authority.intermediate(f"Issuing {number}") for number in (1, 2))
    first.write(ca)
    rules = {
        "client_ca": ca,
        "partial_chain": True,
        "accept_server_certificates": True,
        "max_chain_depth": 1,
        "allow": allow(cn=("carla",)),
    }
    generation = generation_of(pki, routes=(rules,), backend_ca=ca, partial_chain=True)
    route, target = generation.routes["https"].find(NAME), generation.targets["main"][0]
    names = {"dns": (BACKEND_NAME,), "purposes": ("server",)}
    peers = {
        authority: pki.write(authority.issue(LeafSpec("carla", **names)), with_intermediates=False)
        for authority in (first, second)
    }

    def reasons():
        for files in peers.values():
            with meet_client(route, client_context(pki, files, version)) as meeting:
                yield meeting.reason
            with meet_backend(target, server_context(pki, files, version)) as meeting:
                yield meeting.reason

    assert [*reasons()] == ["done", "done", "unknown_ca", "backend_unknown_ca"]
    second.write(ca)
    renew(generation, renewal_of(tmp_path, cas=True))
    assert [*reasons()] == ["unknown_ca", "backend_unknown_ca", "done", "done"]
    until = second.certificate.not_valid_after_utc.timestamp()
    assert list(route.trust.ca_valid_until.values()) == [until]
