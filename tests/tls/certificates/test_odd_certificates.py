"""Certificates that OpenSSL verifies and `cryptography` refuses, in every setting."""

import contextlib
import random
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from relay.errors import ConfigError, Side
from relay.tls import stream
from relay.tls.certificates.inventory import certificates_of
from relay.tls.certificates.lint import lint as lint_files
from relay.tls.certificates.pem import load_authorities, load_key_pair
from relay.tls.contexts import build_generation
from relay.tls.explain import Failure
from relay.tls.identity import admit
from tests.support.handshakes import (
    NAME,
    VERSIONS,
    accept_on,
    client_context,
    config_of,
    meet_backend,
    meet_client,
    route_of,
    server_context,
    socket_pair,
    target_of,
)
from tests.support.odd import (
    CN,
    KEY_USAGE,
    NAME_CONSTRAINTS,
    SOUND,
    Odd,
    Signer,
    attribute,
    dns,
    extension,
    make,
    make_root,
    name,
    pem,
    sequence,
    tlv,
    write_odd,
)

odd = pytest.mark.parametrize("what", SOUND)
both_versions = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
WHERE = "listener.https.route[0].client_ca"


def errors(config):
    return [each.what for each in lint_files(config, datetime.now(UTC)) if each.level == "error"]


@odd
def test_a_gateway_certificate_that_openssl_verifies_is_shown(pki, tmp_path, what):
    files = write_odd(tmp_path, "gateway", SOUND[what], pki.authority)
    route = {"certificate": files.certificate, "private_key": files.key}
    assert errors(config_of(pki, routes=(route,))) == []
    with meet_client(route_of(pki, **route), client_context(pki, pki.client)) as met:
        assert (met.reason, met.peer_error) == ("done", None)


@odd
def test_a_machine_certificate_that_openssl_verifies_is_shown(pki, tmp_path, what):
    files = write_odd(tmp_path, "machine", SOUND[what], pki.authority)
    pool = {"machine_certificate": files.certificate, "machine_key": files.key}
    assert errors(config_of(pki, **pool)) == []
    with meet_backend(target_of(pki, **pool), server_context(pki, pki.backend)) as met:
        assert (met.reason, met.peer_error) == ("done", None)


@odd
@both_versions
def test_a_backend_certificate_that_openssl_verifies_is_accepted(pki, tmp_path, what, version):
    files = write_odd(tmp_path, "backend", SOUND[what], pki.authority)
    with meet_backend(target_of(pki), server_context(pki, files, version)) as met:
        assert met.reason == "done"
        assert met.identity.unread == ""


@odd
def test_a_foreign_backend_certificate_is_shown_by_its_names(pki, tmp_path, what):
    files = write_odd(tmp_path, "backend", SOUND[what], pki.foreign_authority)
    with meet_backend(target_of(pki), server_context(pki, files)) as met:
        assert (met.reason, met.identity.issuer) == ("backend_unknown_ca", "CN=Foreign CA")
        assert "backend.example.com" in met.identity.san_dns


@odd
@both_versions
def test_a_ca_that_openssl_verifies_is_trusted(pki, tmp_path, what, version):
    root, signer = make_root(SOUND[what])
    file = tmp_path / "ca.pem"
    file.write_bytes(pem(root))
    client = write_odd(tmp_path, "client", Odd(subject=name(attribute(CN, "client"))), signer)
    assert errors(config_of(pki, routes=({"client_ca": file},))) == []
    route = route_of(pki, client_ca=file)
    context = client_context(pki, client, version)
    with meet_client(route, context, check=lambda who: admit(who, route.trust, time.time())) as met:
        assert met.reason == "done"
        assert route.trust.ca_valid_until[met.identity.issuer_der] > time.time()
        assert met.identity.issuer == load_authorities(WHERE, file)[0].subject.rfc4514_string()


@odd
def test_an_odd_ca_counts_as_issuer_and_its_file_is_listed(pki, tmp_path, what):
    """The chain [leaf, odd intermediate] is in order and ends at the root."""
    below, signer = make_intermediate(SOUND[what], pki.authority)
    files = write_odd(tmp_path, "gateway", Odd(subject=name(attribute(CN, "gateway"))), signer)
    files.certificate.write_bytes(files.certificate.read_bytes() + pem(below))
    config = config_of(pki, routes=({"certificate": files.certificate, "private_key": files.key},))
    said = [each for each in lint_files(config, datetime.now(UTC)) if each.level != "info"]
    assert said == []
    listed = certificates_of(config)
    assert sum(info.file == str(files.certificate) for info in listed) == 2
    assert all(info.subject.isprintable() and info.serial_hex for info in listed)


_SKI, _CRL_POINTS = "2.5.29.14", "2.5.29.31"
# Certificates that OpenSSL refuses without naming the fault, and the finding.
BROKEN = {
    "a malformed key identifier": (
        Odd(extensions=(extension(_SKI, b"abc"),)),
        "has an extension that OpenSSL cannot parse",
    ),
    "a malformed keyUsage": (
        Odd(extensions=(extension(KEY_USAGE, b"abc"),)),
        "has an extension that OpenSSL cannot parse",
    ),
    "a malformed name constraint": (
        Odd(extensions=(extension(NAME_CONSTRAINTS, b"abc"),)),
        "has an extension that OpenSSL cannot parse",
    ),
    "two key identifiers": (
        Odd(extensions=(extension(_SKI, tlv(4, b"x")),) * 2),
        "has an extension twice: 2.5.29.14",
    ),
    "two CRL distribution points": (
        Odd(extensions=(extension(_CRL_POINTS, sequence()),) * 2),
        "has an extension twice: 2.5.29.31",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("place", ["gateway", "machine", "client_ca", "backend_ca"])
def test_an_extension_that_openssl_refuses_is_a_finding(pki, tmp_path, what, place):
    """In a handshake OpenSSL reports a missing issuer, which is not the fault."""
    different, said = BROKEN[what]
    files = write_odd(tmp_path, "broken", different, pki.authority)
    ca = tmp_path / "ca.pem"
    ca.write_bytes(pem(make_root(different)[0]))
    differences = {
        "gateway": {"routes": ({"certificate": files.certificate, "private_key": files.key},)},
        "machine": {"machine_certificate": files.certificate, "machine_key": files.key},
        "client_ca": {"routes": ({"client_ca": ca},)},
        "backend_ca": {"backend_ca": ca},
    }
    [error] = errors(config_of(pki, **differences[place]))
    assert error.startswith(said)


IMPOSSIBLE = {
    "February 30th": b"200230000000Z",
    "a leap day of no leap year": b"210229000000Z",
    "September 31st": b"200931000000Z",
}


@pytest.mark.parametrize("date", IMPOSSIBLE)
def test_an_impossible_date_is_a_finding(pki, tmp_path, date):
    def change(body):
        at = body.index(tlv(23, b"")[:1] + b"\x0d") + 2
        return body[:at] + IMPOSSIBLE[date] + body[at + 13 :]

    files = write_odd(tmp_path, "gateway", Odd(bend=change), pki.authority)
    [error] = errors(
        config_of(pki, routes=({"certificate": files.certificate, "private_key": files.key},))
    )
    assert "has a date in a format that no TLS peer accepts" in error


def test_too_many_names_to_read_are_not_called_missing(pki, tmp_path):
    many = extension("2.5.29.17", dns("app.example.com", *(f"a{number}" for number in range(1100))))
    files = write_odd(tmp_path, "gateway", Odd(san=many), pki.authority)
    config = config_of(pki, routes=({"certificate": files.certificate, "private_key": files.key},))
    [warning] = [
        each.what for each in lint_files(config, datetime.now(UTC)) if each.level == "warning"
    ]
    assert (
        warning
        == "has names that the relay cannot read, so it cannot compare them with the route's"
    )


def make_intermediate(what, authority):
    signer = Signer(what.subject, ec.generate_private_key(ec.SECP256R1()))
    return make(replace(what, key=signer.key), authority, ca=True)[0], signer


def corrupt(random_, data):
    """Change, drop, add or cut bytes, like a disk, an editor or an attacker."""
    bent = bytearray(data)
    for _ in range(random_.choice((1, 1, 2, 5))):
        at = random_.randrange(len(bent))
        kind = random_.randrange(5)
        if kind == 0:
            bent[at] = random_.randrange(256)
        elif kind == 1:
            bent[at] ^= 1 << random_.randrange(8)
        elif kind == 2:
            del bent[at : at + random_.randrange(1, 5)]
        elif kind == 3:
            bent[at:at] = random_.randbytes(random_.randrange(1, 5))
        else:
            del bent[max(1, at) :]
        bent = bent or bytearray(b"0")
    return bytes(bent)


@pytest.mark.parametrize("seed", range(4))
def test_no_damaged_file_raises_anything_but_a_problem(pki, tmp_path, seed):
    """Each problem names the file and a remedy; an accepted file can be checked and
    used.
    """
    random_ = random.Random(seed)
    whole = [make(each, pki.authority, ca=ca)[0] for each in SOUND.values() for ca in (False, True)]
    whole.append(pki.gateway.issued.certificate.public_bytes(Encoding.DER))
    file = tmp_path / "bent.pem"
    taken = refused = 0
    for number in range(250):
        one = random_.choice(whole)
        text = corrupt(random_, pem(one)) if number % 5 == 0 else pem(corrupt(random_, one))
        file.write_bytes(
            text + (pki.ca.read_bytes() if number % 3 else b"") + pki.gateway.key.read_bytes()
        )
        try:
            load_authorities(WHERE, file)
            load_key_pair(WHERE, file, file)
        except ConfigError as error:
            refused += 1
            for problem in error.problems:
                assert str(file) in problem.what
                assert problem.remedy
                assert str(problem).isprintable()
        config = config_of(pki, routes=({"client_ca": file},), backend_ca=file)
        found = lint_files(config, datetime.now(UTC))
        assert all((each.what + each.subject + each.remedy).isprintable() for each in found)
        if not any(each.level == "error" for each in found):
            build_generation(config, 0)
            assert certificates_of(config)
            taken += 1
    assert taken > 10
    assert refused > 50


def present_broken(files, side, version, sock):
    """A peer with a certificate that the system's OpenSSL may refuse to load."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD if side is Side.INBOUND else SSL.TLS_SERVER_METHOD)
    context.set_max_proto_version(version)
    context.use_certificate_file(str(files.certificate))
    context.use_privatekey_file(str(files.key))
    peer = SSL.Connection(context, sock)
    if side is Side.INBOUND:
        peer.set_tlsext_host_name(NAME.encode())
        peer.set_connect_state()
    else:
        peer.set_accept_state()
    return peer


@pytest.fixture(params=BROKEN)
def broken(request, pki, tmp_path):
    return write_odd(tmp_path, "broken", BROKEN[request.param][0], pki.authority)


SHOWN = [
    (Side.INBOUND, SSL.TLS1_2_VERSION),
    (Side.INBOUND, SSL.TLS1_3_VERSION),
    (Side.OUTBOUND, SSL.TLS1_3_VERSION),
]


@pytest.mark.parametrize(("side", "version"), SHOWN)
def test_a_refused_extension_is_not_reported_as_a_missing_issuer(broken, side, version, stack, pki):
    ours, theirs = (stack.enter_context(each) for each in socket_pair())
    peer = present_broken(broken, side, version, theirs)
    if side is Side.INBOUND:
        handle = accept_on(route_of(pki), ours)
    else:
        target = target_of(pki)
        handle = stream.connect(target.context, ours.fileno(), target.server_name, b"", None)
    stack.callback(stream.free, handle, established=False)
    result = stream.STEP_WANT_READ
    for _ in range(20):
        with contextlib.suppress(SSL.Error):
            peer.do_handshake()
        result = stream.handshake(handle, side)
        if isinstance(result, Failure):
            break
    reason = "invalid_certificate" if side is Side.INBOUND else "backend_invalid_certificate"
    assert (result.reason, result.detail) == (
        reason,
        "the certificate has an extension twice, or one that cannot be parsed; reissue it",
    )
