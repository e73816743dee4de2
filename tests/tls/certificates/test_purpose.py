"""For a certificate with the wrong purpose, the extension and certificate are named."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from relay.demo.ca import LeafSpec
from relay.errors import Reason, Side
from relay.tls.certificates.purpose import forbidding_extension
from tests.support.handshakes import TLS13, client_context, meet_client, route_of

BOTH = [Side.INBOUND, Side.OUTBOUND]
LEAVES = {
    "another extendedKeyUsage": (
        {"purposes": ("code",)},
        "its extendedKeyUsage (codeSigning) lacks ",
    ),
    "keyUsage of an old key": (
        {"key_usages": ("content_commitment", "data_encipherment")},
        "its keyUsage (nonRepudiation, dataEncipherment) lacks digitalSignature",
    ),
    "both": (
        {"purposes": ("code",), "key_usages": ("crl_sign",)},
        "its extendedKeyUsage (codeSigning) lacks ",
    ),
}


@pytest.mark.parametrize("side", BOTH)
@pytest.mark.parametrize("what", LEAVES)
def test_a_leafs_fault_is_named(pki, what, side):
    changes, words = LEAVES[what]
    der = pki.authority.issue(LeafSpec("x", **changes)).certificate.public_bytes(Encoding.DER)
    told = forbidding_extension(der, side, issuer=False)
    assert told.startswith(words)
    if words[-6:] == "lacks ":
        assert told.endswith("clientAuth" if side is Side.INBOUND else "serverAuth")


def made(pki, *extensions):
    """A certificate of the test CA with only these extensions."""
    now = datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Odd CA")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(
        Encoding.DER
    )


def usage(**true):
    names = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement"
        " key_cert_sign crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**{name: true.get(name, False) for name in names.split()})


@pytest.mark.parametrize("what", LEAVES)
def test_the_fault_is_in_the_log_and_not_in_the_alert(pki, what):
    """OpenSSL has one error for all of them."""
    changes, words = LEAVES[what]
    files = pki.write(pki.authority.issue(LeafSpec("x", **changes)))
    with meet_client(route_of(pki), client_context(pki, files, TLS13)) as meeting:
        assert meeting.reason == Reason.WRONG_PURPOSE
        assert words in meeting.result.detail


CA = x509.BasicConstraints(ca=True, path_length=None)
ISSUERS = {
    "no basicConstraints": ((), "it is not a CA: it has no basicConstraints"),
    "CA:FALSE": (
        (x509.BasicConstraints(ca=False, path_length=None),),
        "it is not a CA: its basicConstraints say CA:FALSE",
    ),
    "no keyCertSign": ((CA, usage(crl_sign=True)), "its keyUsage (cRLSign) lacks keyCertSign"),
    "an extendedKeyUsage": (
        (CA, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])),
        "its extendedKeyUsage (emailProtection) lacks serverAuth",
    ),
}


@pytest.mark.parametrize("what", ISSUERS)
def test_an_issuers_fault_is_named(pki, what):
    extensions, words = ISSUERS[what]
    assert forbidding_extension(made(pki, *extensions), Side.OUTBOUND, issuer=True) == words


def test_an_unreadable_certificate_keeps_openssls_text():
    assert forbidding_extension(b"\x30\x03\x02\x01\x00", Side.INBOUND, issuer=False) == ""
