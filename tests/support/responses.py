"""OCSP responses about a certificate, right ones and one of each faulty kind."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from relay.demo.ca import Authority, Leaf

GOOD = ocsp.OCSPCertStatus.GOOD


def response(
    leaf: Leaf,
    authority: Authority,
    *,
    status: ocsp.OCSPCertStatus = GOOD,
    this_update: timedelta = timedelta(hours=-1),
    next_update: timedelta | None = timedelta(days=1),
    algorithm: hashes.HashAlgorithm | None = None,
    signer: tuple[x509.Certificate, object] | None = None,
    send: bool = True,
) -> bytes:
    """A response of the authority. Dates are relative to now.

    `signer` is a responder's certificate and key, which is in the response if `send`.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    revoked = status is ocsp.OCSPCertStatus.REVOKED
    certificate, key = signer or (authority.certificate, authority.key)
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            cert=leaf.certificate,
            issuer=authority.certificate,
            algorithm=algorithm or hashes.SHA1(),
            cert_status=status,
            this_update=now + this_update,
            next_update=None if next_update is None else now + next_update,
            revocation_time=now if revoked else None,
            revocation_reason=None,
        )
        .responder_id(ocsp.OCSPResponderEncoding.HASH, certificate)
    )
    if signer and send:
        builder = builder.certificates([certificate])
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
