"""Checks an OCSP response about the relay's own certificate (RFC 6960).

A response is stapled only if a client would accept it: it is about this certificate,
says that it is good, is valid now, and is signed by the issuer or by a responder that
the issuer has named.

Never: asks a responder, or reads a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from relay.tls.certificates.certificate import Certificate, names_issuer
from relay.tls.certificates.der import SEQUENCE, DerError, inside
from relay.tls.certificates.extensions import ekus_of
from relay.tls.certificates.findings import day, quoted
from relay.tls.certificates.openssl import issued_by
from relay.tls.revocation.fields import CrlError
from relay.tls.revocation.signatures import check_algorithm, is_signed_with

# As for revocation lists: clocks differ.
_AHEAD_S = 300
_FETCH = "have the job that fetches it ask the CA's responder for this certificate, as DER"


class ResponseError(ValueError):
    """Why a response cannot be stapled, and what to do.

    `early`: it may be right for the next certificate.
    """

    def __init__(self, what: str, remedy: str = _FETCH, *, early: bool = False) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy
        self.early = early


class UsableResponse(NamedTuple):
    """A response that may be stapled until this instant (Unix time)."""

    der: bytes
    until_at: float


def check_response(
    der: bytes, chain: tuple[Certificate, ...], known: Iterable[Certificate], now_at: float
) -> UsableResponse:
    """The response, if it may be stapled now. Raises ResponseError.

    `chain` starts with the relay's certificate. Its issuer is looked for in the chain,
    and among the `known` certificates.
    """
    response = _parsed(der)
    leaf = chain[0]
    issuers = [each for each in (*chain[1:], *known, leaf) if names_issuer(leaf, each)]
    if not issuers:
        raise ResponseError(
            "cannot be checked, because the certificate of the issuer"
            f" {quoted(leaf.issuer.rfc4514_string())} is not known",
            "append it to the certificate file; a root in it is not sent to clients",
        )
    single, issuer = _about(leaf, issuers, response)
    _check_status(single)
    until_at = _check_dates(single, now_at)
    responder = _signer(der, response, issuer, now_at)
    return UsableResponse(der, min(until_at, responder.not_valid_after_utc.timestamp()))


def _parsed(der: bytes) -> ocsp.OCSPResponse:
    if not der.strip():
        raise ResponseError("is empty")
    try:
        response = ocsp.load_der_ocsp_response(der)
    except ValueError:
        kind = " but PEM" if b"-----BEGIN" in der else " but HTML" if b"<" in der[:20] else ""
        raise ResponseError(f"is not an OCSP response in DER{kind}") from None
    if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        status = response.response_status.name.lower()
        raise ResponseError(f"is the refusal {quoted(status)} of the responder")
    return response


def _about(
    leaf: Certificate, issuers: Iterable[Certificate], response: ocsp.OCSPResponse
) -> tuple[ocsp.OCSPSingleResponse, Certificate]:
    """The part about this certificate, and the issuer that it names."""
    serial = int.from_bytes(leaf.serial, signed=True)
    serials = []
    try:
        for single in response.responses:
            serials.append(single.serial_number)
            if single.serial_number != serial:
                continue
            for issuer in issuers:
                if _names(single, issuer):
                    return single, issuer
    except ValueError:  # cryptography reads lazily
        raise ResponseError("is malformed") from None
    if serial in serials:
        what = "is about a certificate of another CA with the same serial number"
        raise ResponseError(what, early=True)
    others = ", ".join(f"{each:X}" for each in serials[:3])
    raise ResponseError(
        f"is about the certificate {others}, and not about {leaf.serial_text}: it is older or"
        " newer than the certificate",
        early=True,
    )


def _names(single: ocsp.OCSPSingleResponse, issuer: Certificate) -> bool:
    """Whether a CertID (RFC 6960, 4.1.1) names this issuer."""
    algorithm = single.hash_algorithm.name
    name = hashlib.new(algorithm, issuer.subject.public_bytes(), usedforsecurity=False)
    key = hashlib.new(algorithm, _key_bits(issuer), usedforsecurity=False)
    return bool(single.issuer_name_hash == name.digest() and single.issuer_key_hash == key.digest())


def _key_bits(certificate: Certificate) -> bytes:
    """The bits of a public key, as a CertID hashes them."""
    bits = inside(certificate.spki, SEQUENCE, 2)[1]
    return certificate.spki[bits.start + 1 : bits.stop]


def _check_status(single: ocsp.OCSPSingleResponse) -> None:
    if single.certificate_status is ocsp.OCSPCertStatus.REVOKED:
        revoked_at = single.revocation_time_utc
        since = f" since {day(revoked_at)}" if revoked_at is not None else ""
        raise ResponseError(f"says that the certificate is revoked{since}", "replace it at once")
    if single.certificate_status is not ocsp.OCSPCertStatus.GOOD:
        raise ResponseError("says that the responder does not know the certificate")


def _check_dates(single: ocsp.OCSPSingleResponse, now_at: float) -> float:
    """Until when it is valid (Unix time)."""
    this_update, next_update = single.this_update_utc, single.next_update_utc
    if this_update.timestamp() > now_at + _AHEAD_S:
        what = f"is not valid before {day(this_update)}"
        raise ResponseError(what, "compare this machine's clock with the responder's")
    if next_update is None:
        raise ResponseError("has no nextUpdate, so nobody knows how long it is valid")
    if next_update.timestamp() <= now_at:
        raise ResponseError(f"expired on {day(next_update)}", "fetch it more often")
    return next_update.timestamp()


def _signer(
    der: bytes, response: ocsp.OCSPResponse, issuer: Certificate, now_at: float
) -> Certificate:
    """Who signed it: the issuer, or a responder that the issuer has named."""
    try:
        algorithm = _algorithm(der)
        check_algorithm(algorithm)
    except DerError:
        raise ResponseError("is malformed") from None
    except CrlError as error:
        raise ResponseError(error.what, "have the responder sign with SHA-256") from None
    why = "is not signed by the issuer of the certificate"
    for candidate in (issuer, *_sent(response)):
        if not is_signed_with(
            candidate.spki, algorithm, response.signature, response.tbs_response_bytes
        ):
            continue
        if candidate == issuer:
            return issuer
        why = _why_no_responder(candidate, issuer, now_at)
        if not why:
            return candidate
    raise ResponseError(why)


def _algorithm(der: bytes) -> bytes:
    """The AlgorithmIdentifier of a BasicOCSPResponse (RFC 6960, 4.2.1)."""
    explicit = inside(der, SEQUENCE, 2)[1]
    wrapper = der[explicit.start : explicit.stop]
    octets = inside(wrapper, SEQUENCE, 2)[1]
    basic = wrapper[octets.start : octets.stop]
    signed, algorithm, *_ = inside(basic, SEQUENCE, 4)
    return basic[signed.after : algorithm.after]


def _sent(response: ocsp.OCSPResponse) -> Iterator[Certificate]:
    for each in response.certificates:
        try:
            yield Certificate.from_der(each.public_bytes(Encoding.DER))
        except ValueError:
            continue


def _why_no_responder(candidate: Certificate, issuer: Certificate, now_at: float) -> str:
    """Why it is not a responder of the issuer (RFC 6960, 4.2.2.2); "" if it is."""
    who = f"is signed by {quoted(candidate.subject.rfc4514_string())}, "
    now = datetime.fromtimestamp(now_at, UTC)
    if not issued_by(candidate, issuer):
        return f"{who}which the issuer of the certificate did not issue itself"
    if "OCSPSigning" not in (ekus_of(candidate) or ()):
        return f"{who}which lacks extendedKeyUsage OCSPSigning"
    if not candidate.not_valid_before_utc <= now <= candidate.not_valid_after_utc:
        return f"{who}which is not valid now"
    return ""
