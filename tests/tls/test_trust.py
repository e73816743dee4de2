"""What is known of the CAs of a file, without OpenSSL."""

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from relay.demo.ca import Authority, LeafSpec
from relay.tls.identity import _parse
from relay.tls.trust import CaTrust, key_id
from tests.support.pki import parsed


def trust_in(*authorities):
    return CaTrust.of([parsed(each.certificate) for each in authorities], {})


def issuers(trust, issued):
    certificate = parsed(issued.certificate)
    der = issued.certificate.public_bytes(Encoding.DER)
    who = _parse(certificate.pointer, der, bytes(32))
    return trust.issuers_of(who.issuer_der, who.for_lists.issuer_key_id)


def test_namesakes_are_told_apart_by_the_key_identifier():
    one, two, other = Authority.root("Twin"), Authority.root("Twin"), Authority.root("Other")
    trust = trust_in(one, two, other)
    for each in (one, two, other):
        leaf = each.issue(LeafSpec("leaf"))
        assert issuers(trust, leaf) == (key_id(parsed(each.certificate)),)


def test_without_a_key_identifier_every_key_of_the_name_counts():
    one, two = Authority.root("Twin"), Authority.root("Twin")
    leaf = one.issue(LeafSpec("leaf", key_identifiers=False))
    both = {key_id(parsed(each.certificate)) for each in (one, two)}
    assert set(issuers(trust_in(one, two, Authority.root("Other")), leaf)) == both


def test_a_ca_that_is_not_there_has_issued_nothing():
    leaf = Authority.root("Twin").issue(LeafSpec("leaf"))
    assert issuers(trust_in(Authority.root("Twin")), leaf) == ()
    assert issuers(trust_in(Authority.root("Other")), leaf) == ()


def test_a_ca_is_found_though_its_name_is_encoded_differently():
    root = Authority.root("Root")
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ROOT")])
    now = root.certificate.not_valid_before_utc
    certificate = (
        x509.CertificateBuilder(name, name, root.key.public_key(), 7, now, now)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(root.key.public_key()), critical=False
        )
        .sign(root.key, hashes.SHA256())
    )
    trust = CaTrust.of([parsed(certificate)], {})
    leaf = root.issue(LeafSpec("leaf"))
    assert issuers(trust, leaf) == (key_id(parsed(certificate)),)
    assert issuers(trust, root.issue(LeafSpec("leaf", key_identifiers=False))) == ()


def test_a_renewed_ca_certificate_of_the_same_key_is_one_key():
    root = Authority.root("Root")
    trust = trust_in(root, root)
    assert len(issuers(trust, root.issue(LeafSpec("leaf")))) == 1
