"""A certificate authority for the demonstration and the tests.

Never: issues anything for production. Keys are in plain files, and nothing is revoked.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
KeyType = Literal["ec-p256", "rsa-2048", "rsa-1024"]
Purpose = Literal["server", "client", "any", "code"]

_PURPOSES = {
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
    "client": ExtendedKeyUsageOID.CLIENT_AUTH,
    "any": ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
    "code": ExtendedKeyUsageOID.CODE_SIGNING,
}
_KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@dataclass(frozen=True, slots=True)
class LeafSpec:
    """The contents of a leaf certificate to be issued.

    Without purposes it gets no extendedKeyUsage, without key usages no keyUsage.
    """

    cn: str
    ou: str = ""
    dns: tuple[str, ...] = ()
    ip: tuple[str, ...] = ()
    uri: tuple[str, ...] = ()
    purposes: tuple[Purpose, ...] = ()
    key_usages: tuple[str, ...] = ("digital_signature",)
    not_before: datetime | None = None  # default: an hour ago
    not_after: datetime | None = None  # default: in a year
    key_type: KeyType = "ec-p256"
    key_identifiers: bool = True


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf certificate, its key, and the intermediates to send with it."""

    certificate: x509.Certificate
    key: Key = field(repr=False)
    intermediates: tuple[x509.Certificate, ...] = ()

    def write(
        self, certificate: Path, private_key: Path | None = None, *, with_intermediates: bool = True
    ) -> Path:
        """Write the chain and the key, to one file (mode 0600) if no `private_key`.

        Returns `certificate`.
        """
        chain = to_pem((self.certificate, *(self.intermediates if with_intermediates else ())))
        if private_key is None:
            _write_private(certificate, chain + key_pem(self.key))
        else:
            certificate.write_bytes(chain)
            _write_private(private_key, key_pem(self.key))
        return certificate


@dataclass(frozen=True, slots=True)
class Authority:
    """A root CA, or an intermediate CA with the chain above it."""

    certificate: x509.Certificate
    key: Key = field(repr=False)
    above: tuple[x509.Certificate, ...] = ()  # the intermediates up from here, without the root

    @classmethod
    def root(
        cls,
        cn: str,
        *,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        key_type: KeyType = "ec-p256",
    ) -> Authority:
        """Make a self-signed root."""
        key = make_key(key_type)
        builder = _ca_extensions(
            _builder(_name(cn), _name(cn), key, not_before, not_after), key, key
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    def intermediate(
        self, cn: str, *, not_before: datetime | None = None, not_after: datetime | None = None
    ) -> Authority:
        """Make a CA below this one."""
        key = make_key("ec-p256")
        builder = _ca_extensions(
            _builder(_name(cn), self.certificate.subject, key, not_before, not_after), key, self.key
        )
        certificate = builder.sign(self.key, hashes.SHA256())
        return Authority(certificate, key, (certificate, *self.above))

    def issue(self, spec: LeafSpec) -> Leaf:
        """Issue a leaf."""
        key = make_key(spec.key_type)
        builder = _builder(
            _name(spec.cn, spec.ou),
            self.certificate.subject,
            key,
            spec.not_before,
            spec.not_after,
        )
        return Leaf(
            _leaf_extensions(builder, spec, key, self.key).sign(self.key, hashes.SHA256()),
            key,
            self.above,
        )

    def server(self, cn: str, *, dns: tuple[str, ...] = (), ip: tuple[str, ...] = ()) -> Leaf:
        """Issue a server certificate; `dns` defaults to the common name."""
        return self.issue(LeafSpec(cn, dns=dns or (cn,), ip=ip, purposes=("server",)))

    def client(self, cn: str) -> Leaf:
        """Issue a client certificate."""
        return self.issue(LeafSpec(cn, purposes=("client",)))

    def write(self, file: Path) -> Path:
        """Write this CA's certificate, without its key; returns `file`."""
        file.write_bytes(to_pem((self.certificate,)))
        return file


def self_signed(spec: LeafSpec) -> Leaf:
    """Make a self-signed leaf."""
    key = make_key(spec.key_type)
    name = _name(spec.cn, spec.ou)
    return Leaf(
        _leaf_extensions(
            _builder(name, name, key, spec.not_before, spec.not_after), spec, key, key
        ).sign(key, hashes.SHA256()),
        key,
    )


def make_key(key_type: KeyType) -> Key:
    """Make a key: EC P-256 takes about 0.1 ms, RSA 2048 about 50 ms.

    RSA 1024 exists because tests check that it is refused.
    """
    if key_type == "ec-p256":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(65537, 1024 if key_type == "rsa-1024" else 2048)


def to_pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """The certificates as one PEM text, in their order."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def key_pem(key: Key) -> bytes:
    """The key as PKCS#8 PEM, not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write_private(file: Path, data: bytes) -> None:
    # open sets the mode: chmod afterwards would leave a moment to read the key.
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        stream.write(data)


def _name(cn: str, ou: str = "") -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, cn),
            *([x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, ou)] if ou else []),
        ]
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: Key,
    not_before: datetime | None,
    not_after: datetime | None,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before or now - timedelta(hours=1))
        .not_valid_after(not_after or now + timedelta(days=365))
    )


def _key_usage(*usages: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in usages for usage in _KEY_USAGES})


def _ca_extensions(
    builder: x509.CertificateBuilder, key: Key, issuer_key: Key
) -> x509.CertificateBuilder:
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )


def _leaf_extensions(
    builder: x509.CertificateBuilder, spec: LeafSpec, key: Key, issuer_key: Key
) -> x509.CertificateBuilder:
    builder = builder.add_extension(
        x509.BasicConstraints(ca=False, path_length=None), critical=True
    )
    names: list[x509.GeneralName] = [
        *map(x509.DNSName, spec.dns),
        *(x509.IPAddress(ip_address(text)) for text in spec.ip),
        *map(x509.UniformResourceIdentifier, spec.uri),
    ]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if spec.purposes:
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([_PURPOSES[purpose] for purpose in spec.purposes]),
            critical=False,
        )
    if spec.key_usages:
        builder = builder.add_extension(_key_usage(*spec.key_usages), critical=True)
    if spec.key_identifiers:
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        )
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    return builder
