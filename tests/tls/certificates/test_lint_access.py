"""The findings of `relay check` about issuers in allow and deny."""

from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from relay.config.listener_model import Deny
from relay.demo.ca import to_pem
from relay.tls.certificates.findings import Level
from relay.tls.certificates.lint import lint
from tests.support.handshakes import allow, config_of
from tests.support.odd import CN, Odd, attribute, make_root, name, pem

ROUTE = "listener.https.route[0]"


@pytest.fixture
def linted(pki, tmp_path):
    """The warnings about a route whose client_ca has a root and a CA of three parts."""
    three = name(attribute("2.5.4.6", "DE", 19), attribute("2.5.4.10", "Corp"), attribute(CN, "A"))
    der, _ = make_root(Odd(subject=three))
    file = tmp_path / "cas.pem"
    file.write_bytes(to_pem([pki.authority.certificate]) + pem(der))

    def check(**lists):
        route = {"client_ca": file, **lists}
        found = lint(config_of(pki, routes=(route,)), datetime.now(UTC))
        assert all(each.remedy for each in found if each.level is Level.WARNING)
        return [each for each in found if each.level is Level.WARNING]

    return check


@pytest.mark.parametrize("entry", ["CN=A,O=Corp,C=DE", "CN=Test CA", "CN=An intermediate"])
def test_a_name_in_its_order_or_of_another_ca_is_no_finding(linted, entry):
    assert linted(allow=allow(issuer=(entry,))) == []


def test_a_name_in_the_other_order_is_told_with_the_right_one(linted):
    (found,) = linted(deny=Deny(issuer=("CN=x", "C = DE, O = Corp, CN = A")))
    assert found.where == f"{ROUTE}.deny.issuer[1]"
    assert "in the other order, so it matches nothing" in found.what
    assert 'write "CN=A,O=Corp,C=DE"' in found.remedy


@pytest.mark.parametrize("kind", [hashes.SHA1(), hashes.SHA256()], ids=["sha1", "sha256"])
def test_a_fingerprint_instead_of_a_key_id_is_told(pki, linted, kind):
    certificate = pki.authority.certificate
    given = certificate.fingerprint(kind).hex(":").upper()
    found, _ = linted(allow=allow(issuer=(given,)))
    assert found.where == f"{ROUTE}.allow.issuer[0]"
    assert 'is the fingerprint of the CA "CN=Test CA", and not its key id' in found.what
    identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert identifier.value.digest.hex(":").upper() in found.remedy


def test_a_ca_without_a_key_id_is_told_if_key_ids_are_compared(linted):
    (found,) = linted(deny=Deny(issuer=("AB:CD",)))
    assert (found.where, found.subject) == (f"{ROUTE}.client_ca", "CN=A,O=Corp,C=DE")
    assert "has no subjectKeyIdentifier" in found.what


@pytest.mark.parametrize("more", [{}, {"san_dns": ("a.example",)}])
def test_server_certificates_of_a_whole_ca_are_told(linted, more):
    found = linted(allow=allow(issuer=("CN=Test CA",), **more), accept_server_certificates=True)
    assert [each.where for each in found] == ([] if more else [f"{ROUTE}.allow.issuer"])
