"""Revocation lists for tests, made with cryptography."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from relay.demo.ca import Authority, key_pem
from relay.tls.certificates.certificate import Certificate
from relay.tls.certificates.pem_blocks import read_blocks
from relay.tls.revocation.crl import RevocationList, entries_of, parse_list
from relay.tls.revocation.revoked_set import RevokedSet, build, pack
from relay.tls.revocation.selection import select
from tests.support.odd import ECDSA_SHA256, extension, integer, oid, sequence, tlv
from tests.support.programs import program

HOLD, COMPROMISED, REMOVED = (
    x509.ReasonFlags.certificate_hold,
    x509.ReasonFlags.key_compromise,
    x509.ReasonFlags.remove_from_crl,
)
REVOKED_AT = datetime(2026, 11, 26, 10, 0, tzinfo=UTC)


def make_crl(
    authority: Authority,
    revoked: Iterable[Any] = (),
    *,
    number: int | None = 1,
    base: int | None = None,
    age: timedelta = timedelta(hours=1),
    lasts: timedelta | None = timedelta(days=7),
    authority_key: bool = True,
    scope: dict[str, Any] | None = None,
    extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
    entry_extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
    signer: Any = None,
    algorithm: Any = None,
) -> bytes:
    """A list in DER.

    `revoked` has certificates, serial numbers, or pairs of one of these and a reason.
    `age` and `lasts` count from now and from the issue; `signer` is another key.
    """
    now = datetime.now(UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now - age)
        .next_update(now - age + (lasts or timedelta(days=7)))
    )
    for each in revoked:
        which, reason = each if isinstance(each, tuple) else (each, None)
        entry = (
            x509.RevokedCertificateBuilder()
            .serial_number(which if isinstance(which, int) else which.serial_number)
            .revocation_date(REVOKED_AT)
        )
        if reason is not None:
            entry = entry.add_extension(x509.CRLReason(reason), critical=False)
        for added, critical in entry_extensions:
            entry = entry.add_extension(added, critical=critical)
        builder = builder.add_revoked_certificate(entry.build())
    key = signer or authority.key
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    if base is not None:
        builder = builder.add_extension(x509.DeltaCRLIndicator(base), critical=True)
    if authority_key:
        own = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
        builder = builder.add_extension(own, critical=False)
    if scope is not None:
        builder = builder.add_extension(issuing_point(**scope), critical=True)
    for added, critical in extensions:
        builder = builder.add_extension(added, critical=critical)
    if algorithm is None:
        algorithm = hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)


def issuing_point(*uris: str, **differences: Any) -> x509.IssuingDistributionPoint:
    """An issuingDistributionPoint with these URIs and flags."""
    uris = differences.pop("uris", uris)
    return x509.IssuingDistributionPoint(
        **{
            "full_name": [x509.UniformResourceIdentifier(uri) for uri in uris] or None,
            "relative_name": None,
            "only_contains_user_certs": False,
            "only_contains_ca_certs": False,
            "only_some_reasons": None,
            "indirect_crl": False,
            "only_contains_attribute_certs": False,
            **differences,
        }
    )


def to_pem(*lists: bytes) -> bytes:
    """Lists as one PEM text."""
    return b"".join(x509.load_der_x509_crl(der).public_bytes(Encoding.PEM) for der in lists)


def serial_of(certificate: x509.Certificate | int) -> bytes:
    """A serial number as the DER of the INTEGER contains it."""
    number = certificate if isinstance(certificate, int) else certificate.serial_number
    return number.to_bytes(number.bit_length() // 8 + 1)


def listed(
    authority: Authority, *revoked: Any, source: str = "a.crl", **how: Any
) -> RevocationList:
    """A list, read."""
    return parse_list(source, make_crl(authority, revoked, **how))


def revoked_set(authority: Authority, *revoked: Any, **how: Any) -> RevokedSet:
    """The set of one list, without the detour over files."""
    crl = listed(authority, *revoked, **how)
    cas = [Certificate.from_der(authority.certificate.public_bytes(Encoding.DER))]
    found = select([crl], cas, time.time(), lambda each, key: pack(key, entries_of(each)))
    assert found.errors == []
    return RevokedSet(build(found.lists))


def openssl_crl(
    directory: Path,
    authority: Authority,
    revoked: Iterable[tuple[x509.Certificate, str]],
    *options: str,
    extensions: bool = True,
) -> bytes:
    """A list as `openssl ca` makes it, of these certificates with their reasons."""
    directory.mkdir()
    (directory / "index.txt").touch()
    (directory / "number").write_text("11\n")
    (directory / "ca.key").write_bytes(key_pem(authority.key))
    authority.write(directory / "ca.pem")
    configuration = directory / "ca.cnf"
    configuration.write_text(
        "[ca]\ndefault_ca = one\n[one]\n"
        f"database = {directory}/index.txt\ncertificate = {directory}/ca.pem\n"
        f"private_key = {directory}/ca.key\n"
        + (f"crlnumber = {directory}/number\ncrl_extensions = two\n" if extensions else "")
        + "default_md = sha256\ndefault_crl_days = 7\n[two]\nauthorityKeyIdentifier = keyid\n"
    )
    base = [program("openssl"), "ca", "-batch", "-config", str(configuration)]
    for number, (certificate, reason) in enumerate(revoked):
        file = directory / f"{number}.pem"
        file.write_bytes(certificate.public_bytes(Encoding.PEM))
        _run([*base, "-revoke", str(file), "-crl_reason", reason])
    _run([*base, "-gencrl", "-out", str(directory / "made.crl"), *options])
    [block] = read_blocks((directory / "made.crl").read_bytes())
    return block.data


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, timeout=30, capture_output=True)
    assert done.returncode == 0, done.stderr


def large_crl(authority: Authority, entries: int, *revoked: x509.Certificate, number: int) -> bytes:
    """A list with so many random entries and these certificates, made in a second."""
    now = datetime.now(UTC)
    date = tlv(0x17, b"261126100000Z")
    # A positive serial number of 16 bytes that does not start with zero bits alone.
    random = os.urandom(15 * entries)
    head = bytes((0x30, 2 + 16 + len(date), 2, 16, 0x55))
    made = [head + random[at : at + 15] + date for at in range(0, 15 * entries, 15)]
    made += [sequence(integer(each.serial_number), date) for each in revoked]
    algorithm = sequence(oid(ECDSA_SHA256))
    body = sequence(
        integer(1),
        algorithm,
        authority.certificate.subject.public_bytes(),
        *(tlv(0x17, f"{at:%y%m%d%H%M%SZ}".encode()) for at in (now, now + timedelta(days=7))),
        sequence(*made),
        tlv(0xA0, sequence(extension("2.5.29.20", integer(number)))),
    )
    assert isinstance(authority.key, ec.EllipticCurvePrivateKey)
    signature = authority.key.sign(body, ec.ECDSA(hashes.SHA256()))
    return sequence(body, algorithm, tlv(3, b"\0" + signature))


def with_name(authority: Authority, name: str) -> Authority:
    """The same key in a root of another name."""
    root = authority.certificate
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(root.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(root.not_valid_before_utc)
        .not_valid_after(root.not_valid_after_utc)
    )
    for each in root.extensions:
        builder = builder.add_extension(each.value, critical=each.critical)
    return Authority(builder.sign(authority.key, hashes.SHA256()), authority.key)


def with_points(issuer: Authority, certificate: x509.Certificate, *urls: str) -> x509.Certificate:
    """The same certificate, issued with these URLs as its distribution points."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(certificate.subject)
        .issuer_name(certificate.issuer)
        .public_key(certificate.public_key())
        .serial_number(certificate.serial_number)
        .not_valid_before(certificate.not_valid_before_utc)
        .not_valid_after(certificate.not_valid_after_utc)
    )
    for each in certificate.extensions:
        builder = builder.add_extension(each.value, critical=each.critical)
    points = [
        x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)
        for url in urls
    ]
    builder = builder.add_extension(x509.CRLDistributionPoints(points), critical=False)
    return builder.sign(issuer.key, hashes.SHA256())
