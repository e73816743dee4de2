"""The certificates of a run: one CA and an ECDSA P-256 leaf for each party.

All gateways use the same ones. They are valid for a month.

Never: keeps them beyond the run; they are in its temporary directory.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

GATEWAY_NAME = "gateway.bench"
BACKEND_NAME = "backend.bench"
COOKIE_NAME = "cookie.bench"  # the gateway's name of the route with cookies
HOLE_NAME = "hole.bench"  # the gateway's name of the route to the hole
PARTIES = {
    "gateway": (GATEWAY_NAME, ExtendedKeyUsageOID.SERVER_AUTH),
    "gateway-2": (GATEWAY_NAME, ExtendedKeyUsageOID.SERVER_AUTH),  # to renew with
    "backend": (BACKEND_NAME, ExtendedKeyUsageOID.SERVER_AUTH),
    "machine": ("machine.bench", ExtendedKeyUsageOID.CLIENT_AUTH),
    "stranger": ("stranger.bench", ExtendedKeyUsageOID.SERVER_AUTH),
    "client": ("client.bench", ExtendedKeyUsageOID.CLIENT_AUTH),
}
_NAMES = (COOKIE_NAME, HOLE_NAME)
# mod_proxy checks the name in its URL, which it also resolves.
ALIASES = {"backend": ("localhost",), "gateway": _NAMES, "gateway-2": _NAMES}


@dataclass(frozen=True, slots=True)
class Pki:
    """The files of a run: `NAME.crt`, `NAME.key`, and both in `NAME.pem`."""

    directory: Path

    @property
    def ca(self) -> Path:
        """The CA certificate that all parties trust."""
        return self.directory / "ca.crt"

    def pem(self, party: str) -> Path:
        """The file with leaf and key of a party."""
        return self.directory / f"{party}.pem"


def create_pki(directory: Path) -> Pki:
    """Make the CA and all leaves, readable by gateways that drop their privileges."""
    now = dt.datetime.now(dt.UTC)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench CA")])
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    pki = Pki(directory)
    _write(pki.ca, ca.public_bytes(serialization.Encoding.PEM))
    for party, (name, purpose) in PARTIES.items():
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        leaf = (
            _builder(subject, ca_name, key.public_key(), now)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.DNSName(each) for each in (name, *ALIASES.get(party, ()))]
                ),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
                critical=False,
            )
            .sign(ca_key, hashes.SHA256())
        )
        certificate = leaf.public_bytes(serialization.Encoding.PEM)
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        _write(directory / f"{party}.crt", certificate)
        _write(directory / f"{party}.key", secret)
        _write(pki.pem(party), certificate + secret)
    return pki


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=30))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o644)
