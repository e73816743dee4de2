"""Every kind of key in every place: handshakes work, or `check` says why not."""

from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.x509.oid import NameOID

from relay.demo.ca import Authority, LeafSpec
from relay.tls.certificates.certificate import Key
from relay.tls.certificates.findings import Level
from relay.tls.certificates.key_kinds import key_problem
from relay.tls.certificates.lint import lint
from tests.support.handshakes import (
    VERSIONS,
    client_context,
    config_of,
    meet_backend,
    meet_client,
    route_of,
    server_context,
    target_of,
)
from tests.support.odd import (
    CN,
    Odd,
    Signer,
    attribute,
    dns,
    extension,
    integer,
    make,
    name,
    oid,
    pem,
    rsa_pss,
    sequence,
    tlv,
    write_odd,
)

both_versions = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
GOOD = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "RSA-PSS": None,
}
BAD = {
    "P-224": lambda: ec.generate_private_key(ec.SECP224R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "brainpoolP256r1": lambda: ec.generate_private_key(ec.BrainpoolP256R1()),
    "brainpoolP384r1": lambda: ec.generate_private_key(ec.BrainpoolP384R1()),
    "brainpoolP512r1": lambda: ec.generate_private_key(ec.BrainpoolP512R1()),
    "DSA": lambda: dsa.generate_private_key(2048),
}


@pytest.fixture(params=GOOD)
def good(request, pki, tmp_path):
    make_key = GOOD[request.param]
    if make_key is not None:
        return write_odd(tmp_path, "key", Odd(key=make_key()), pki.authority)
    odd, key = rsa_pss()
    files = write_odd(tmp_path, "key", odd, pki.authority)
    files.key.write_bytes(key)
    return files


def findings(pki, *, level=Level.ERROR, **differences):
    return [
        each
        for each in lint(config_of(pki, **differences), datetime.now(UTC))
        if each.level is level
    ]


@both_versions
def test_a_key_that_tls_knows_works_on_all_sides_with_the_defaults(pki, good, version):
    shown = {"certificate": good.certificate, "private_key": good.key}
    machine = {"machine_certificate": good.certificate, "machine_key": good.key}
    assert findings(pki, routes=(shown,), **machine) == []
    with meet_client(route_of(pki), client_context(pki, good, version)) as met:
        assert met.reason == "done"
    with meet_client(route_of(pki, **shown), client_context(pki, pki.client, version)) as met:
        assert (met.reason, met.peer_error) == ("done", None)
    with meet_backend(target_of(pki), server_context(pki, good, version)) as met:
        assert met.reason == "done"
    with meet_backend(target_of(pki, **machine), server_context(pki, pki.backend, version)) as met:
        assert (met.reason, met.peer_error) == ("done", None)


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("place", ["gateway", "machine"])
def test_a_key_that_no_peer_accepts_is_refused_by_its_kind(pki, tmp_path, kind, place):
    files = write_odd(tmp_path, "key", Odd(key=BAD[kind]()), pki.authority)
    shown = {"certificate": files.certificate, "private_key": files.key}
    machine = {"machine_certificate": files.certificate, "machine_key": files.key}
    found = findings(pki, routes=(shown,)) if place == "gateway" else findings(pki, **machine)
    [finding] = found
    assert kind in finding.what
    assert finding.file == str(files.certificate)
    assert "P-256" in finding.remedy


def pss_parameters(hash_number, salt):
    """RSASSA-PSS-params (RFC 4055, 3.1) with SHA-2 in both places."""
    chosen = sequence(oid(f"2.16.840.1.101.3.4.2.{hash_number}"), tlv(5))
    mask = sequence(oid("1.2.840.113549.1.1.8"), chosen)
    return sequence(tlv(0xA0, chosen), tlv(0xA1, mask), tlv(0xA2, integer(salt)))


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (sequence(), "SHA-1, for which"),
        (pss_parameters(4, 28), "SHA-224, for which"),
        (pss_parameters(1, 64), "SHA-256 with 64 bytes of salt, for which"),
        (pss_parameters(1, 32), ""),
        (pss_parameters(2, 20), ""),
        (pss_parameters(3, 64), ""),
    ],
)
@both_versions
def test_an_rsa_pss_key_restricted_beyond_tls_is_refused(pki, tmp_path, parameters, said, version):
    odd, key = rsa_pss(parameters)
    files = write_odd(tmp_path, "key", odd, pki.authority)
    files.key.write_bytes(key)
    shown = {"certificate": files.certificate, "private_key": files.key}
    found = [each.what for each in findings(pki, routes=(shown,))]
    assert [said in each for each in found] == ([True] if said else [])
    with meet_client(route_of(pki, **shown), client_context(pki, pki.client, version)) as met:
        assert (met.reason == "done") == (not said), "what `check` says is what happens"


def test_brainpool_is_a_warning_where_groups_name_it(pki, tmp_path):
    """An operator who adds the curve to groups has peers that support it."""
    files = write_odd(tmp_path, "key", Odd(key=BAD["brainpoolP256r1"]()), pki.authority)
    shown = {
        "certificate": files.certificate,
        "private_key": files.key,
        "groups": "X25519:brainpoolP256r1",
    }
    assert findings(pki, routes=(shown,)) == []
    [warning] = findings(pki, level=Level.WARNING, routes=(shown,))
    assert "brainpoolP256r1" in warning.what


def test_a_curve_missing_in_groups_is_a_warning_towards_tls12_servers(pki, tmp_path):
    files = write_odd(tmp_path, "key", Odd(key=GOOD["P-521"]()), pki.authority)
    machine = {
        "machine_certificate": files.certificate,
        "machine_key": files.key,
        "groups": "X25519:P-256",
    }
    [warning] = findings(pki, level=Level.WARNING, **machine)
    assert warning.what == "has a key on P-521, which is not in groups: TLS 1.2 servers refuse it"
    assert findings(pki, level=Level.WARNING, min_version="TLSv1.3", **machine) == []
    shown = {"certificate": files.certificate, "private_key": files.key, "groups": "X25519:P-256"}
    assert findings(pki, level=Level.WARNING, routes=(shown,)) == []
    with meet_client(
        route_of(pki, **shown), client_context(pki, pki.client, VERSIONS["TLSv1.2"])
    ) as met:
        assert met.reason == "done"


def test_a_client_key_on_a_curve_outside_groups_is_explained(pki, tmp_path):
    files = write_odd(tmp_path, "key", Odd(key=GOOD["P-521"]()), pki.authority)
    route = route_of(pki, groups="X25519:P-256")
    with meet_client(route, client_context(pki, files, VERSIONS["TLSv1.2"])) as met:
        assert met.reason == "no_shared_group"
        assert met.result.detail == "the key of the certificate is on a curve that is not in groups"


@pytest.mark.parametrize("kind", [*BAD, "P-521"])
@both_versions
def test_a_ca_may_have_a_key_that_tls_itself_does_not_use(pki, tmp_path, kind, version):
    key = {**BAD, **GOOD}[kind]()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA")])
    usual = pki.authority.certificate
    root = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(usual.not_valid_before_utc)
        .not_valid_after(usual.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    authority = Authority(root, key)
    ca = authority.write(tmp_path / "ca.pem")
    assert findings(pki, routes=({"client_ca": ca},)) == []
    files = pki.write(
        authority.issue(LeafSpec("alice", purposes=("client",), key_identifiers=False))
    )
    with meet_client(route_of(pki, client_ca=ca), client_context(pki, files, version)) as met:
        assert met.reason == "done"


def constraints(*permitted):
    """The value of a nameConstraints extension that permits DNS names."""
    return sequence(tlv(0xA0, *(sequence(tlv(0x82, each.encode())) for each in permitted)))


@pytest.mark.parametrize(
    "root", ["authority", "foreign_authority"], ids=["root known", "root unknown"]
)
@pytest.mark.parametrize("what", ["gateway", "machine"])
def test_a_certificate_outside_its_cas_name_constraints_is_a_warning(pki, tmp_path, what, root):
    """`check` names the CA that limits it; clients that verify would refuse the
    connection.

    That the root is in no configured file is the usual case: clients have it.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = name(attribute(CN, "Issuing constrained"))
    limits = extension("2.5.29.30", constraints("corp.test"), tlv(1, b"\xff"))
    below, _ = make(
        Odd(subject=subject, key=key, extensions=(limits,)), getattr(pki, root), ca=True
    )
    signer = Signer(subject, key)
    outside = write_odd(tmp_path, "outside", Odd(), signer)
    inside = write_odd(
        tmp_path, "inside", Odd(san=extension("2.5.29.17", dns("a.corp.test"))), signer
    )
    for files, count in ((outside, 1), (inside, 0)):
        files.certificate.write_bytes(files.certificate.read_bytes() + pem(below))
        shown = {"certificate": files.certificate, "private_key": files.key}
        machine = {"machine_certificate": files.certificate, "machine_key": files.key}
        differences = {"routes": (shown,)} if what == "gateway" else machine
        found = [
            each
            for each in findings(pki, level=Level.WARNING, **differences)
            if "nameConstraints" in each.what
        ]
        assert len(found) == count
        assert all(
            '"CN=Issuing constrained" may not issue all of its names' in each.what for each in found
        )


def test_a_very_long_rsa_key_is_warned_about_with_its_price(pki):
    class Long:
        key = Key("1.2.840.113549.1.1.1", "", 16384)

    problem = key_problem(Long, "", to_servers=False)
    assert (problem.refused, "16384 bits" in problem.what) == (False, True)
