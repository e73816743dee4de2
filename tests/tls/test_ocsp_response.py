"""Which OCSP responses are stapled: what a client would accept, and nothing else."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from hypothesis import given
from hypothesis import strategies as st

from relay.config.listener_model import Listener, Route
from relay.config.model import Config
from relay.config.pool_model import Backend, Pool
from relay.demo.ca import Authority, LeafSpec
from relay.files import Files
from relay.tls.certificates.findings import Level
from relay.tls.lint_staples import lint_staples
from relay.tls.ocsp_response import ResponseError, check_response
from relay.tls.staple import Staple
from tests.support.pki import parsed
from tests.support.responses import response

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
CA = Authority.root("Test CA")
LEAF = CA.server("gateway", dns=("app.example.com",))
NAMESAKE = Authority.root("Test CA")


def check(der, leaf=LEAF, known=(CA,), now_at=None):
    chain = (parsed(leaf.certificate), *map(parsed, leaf.intermediates))
    known = [parsed(each.certificate) for each in known]
    return check_response(der, chain, known, time.time() if now_at is None else now_at)


def why(der, **differences):
    with pytest.raises(ResponseError) as caught:
        check(der, **differences)
    assert caught.value.remedy
    assert "\n" not in caught.value.what
    return caught.value.what


def responder(spec=None, authority=CA):
    """A certificate that may sign responses, and its key."""
    issued = authority.issue(spec or LeafSpec("responder"))
    like = issued.certificate
    builder = x509.CertificateBuilder(
        like.issuer,
        like.subject,
        like.public_key(),
        like.serial_number,
        like.not_valid_before_utc,
        like.not_valid_after_utc,
    )
    usage = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.OCSP_SIGNING])
    built = builder.add_extension(usage, critical=False).sign(authority.key, hashes.SHA256())
    return built, issued.key


@pytest.mark.parametrize("algorithm", [hashes.SHA1(), hashes.SHA256(), hashes.SHA384()])
def test_a_good_response_of_the_issuer_is_usable_until_its_next_update(algorithm):
    der = response(LEAF, CA, algorithm=algorithm)
    usable = check(der)
    assert usable.der == der
    assert usable.until_at == pytest.approx(time.time() + 86_400, abs=5)


def test_a_responder_that_the_issuer_has_named_may_sign():
    assert check(response(LEAF, CA, signer=responder())).der


def test_it_is_usable_only_as_long_as_its_responder_is_valid():
    short = LeafSpec("responder", not_after=datetime.now(UTC) + HOUR)
    usable = check(response(LEAF, CA, signer=responder(short)))
    assert usable.until_at == pytest.approx(time.time() + 3600, abs=5)


def test_the_issuer_may_be_in_the_chain_alone():
    below = CA.intermediate("Below")
    leaf = below.server("gateway")
    assert check(response(leaf, below), leaf=leaf, known=()).der


def plain_client(authority=CA):
    issued = authority.client("mallory")
    return issued.certificate, issued.key


OTHER = CA.server("other")
FAULTS = {
    "nothing": (b"", "is empty"),
    "text": (b"no such file", "is not an OCSP response in DER"),
    "HTML": (b"<html>404</html>", "is not an OCSP response in DER but HTML"),
    "PEM": (b"-----BEGIN OCSP RESPONSE-----", "is not an OCSP response in DER but PEM"),
    "truncated": (response(LEAF, CA)[:-20], "is not an OCSP response"),
    "a refusal": (
        ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER).public_bytes(
            Encoding.DER
        ),
        'is the refusal "try_later"',
    ),
    "another certificate": (response(OTHER, CA), "and not about"),
    "a namesake of the CA": (response(LEAF, NAMESAKE), "of another CA with the same serial"),
    "revoked": (
        response(LEAF, CA, status=ocsp.OCSPCertStatus.REVOKED),
        "says that the certificate is revoked since",
    ),
    "unknown": (response(LEAF, CA, status=ocsp.OCSPCertStatus.UNKNOWN), "does not know"),
    "expired": (response(LEAF, CA, this_update=-2 * DAY, next_update=-HOUR), "expired on"),
    "of the future": (response(LEAF, CA, this_update=HOUR, next_update=DAY), "is not valid before"),
    "without an end": (response(LEAF, CA, next_update=None), "has no nextUpdate"),
    "of a stranger": (
        response(LEAF, CA, signer=(NAMESAKE.certificate, NAMESAKE.key)),
        "which the issuer of the certificate did not issue itself",
    ),
    "signed by no certificate that it has": (
        response(LEAF, CA, signer=responder(), send=False),
        "is not signed by the issuer",
    ),
    "of a client of the CA": (
        response(LEAF, CA, signer=plain_client()),
        "which lacks extendedKeyUsage OCSPSigning",
    ),
    "of a responder of another CA": (
        response(LEAF, CA, signer=responder(authority=NAMESAKE)),
        "did not issue itself",
    ),
    "of an expired responder": (
        response(
            LEAF,
            CA,
            signer=responder(
                LeafSpec(
                    "responder",
                    not_before=datetime.now(UTC) - 9 * DAY,
                    not_after=datetime.now(UTC) - HOUR,
                )
            ),
        ),
        "which is not valid now",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_anything_else_is_refused_with_a_reason(fault):
    der, text = FAULTS[fault]
    assert text in why(der)


def test_without_its_issuer_a_response_cannot_be_checked():
    assert 'the issuer "CN=Test CA" is not known' in why(response(LEAF, CA), known=())


def test_a_changed_byte_is_never_accepted():
    der = bytearray(response(LEAF, CA))
    for position in range(0, len(der), 7):
        changed = bytes(der[:position]) + bytes((der[position] ^ 1,)) + bytes(der[position + 1 :])
        try:
            usable = check(changed)
        except ResponseError:
            continue
        raise AssertionError(position, usable)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_response_or_a_reason(der):
    with pytest.raises(ResponseError):
        check(der)


def test_a_staple_keeps_the_response_that_fits_its_certificate(tmp_path):
    """Certificate and response are renewed one after the other, in any order."""
    staple = Staple(tmp_path)
    old, new = (parsed(LEAF.certificate),), (parsed(OTHER.certificate),)
    known = [parsed(CA.certificate)]
    staple.set(response(LEAF, CA), old, known)
    assert (staple.until_at > 0, staple.why) == (True, "")
    staple.set(response(OTHER, CA), old, known)  # the response comes first
    assert staple.until_at > 0
    staple.set(None, new, known)
    assert (staple.until_at > 0, staple.why) == (True, "")
    staple.set(None, old, known)  # and back: nothing fits any more
    assert (staple.until_at, "and not about" in staple.why) == (0, True)


def config_of(pki, files, **route):
    shown = Route(
        pool="main",
        certificate=files.certificate,
        private_key=files.key,
        client_ca=pki.ca,
        **route,
    )
    pool = Pool(
        machine_certificate=pki.machine.certificate,
        machine_key=pki.machine.key,
        backend_ca=pki.ca,
        backend=(Backend(route="b1", address="127.0.0.1:1"),),
    )
    listener = Listener(name="https", listen=("127.0.0.1:0",), route=(shown,))
    return Config(listener=(listener,), pool={"main": pool})


def findings(config):
    return list(lint_staples(config, datetime.now(UTC), Files()))


def test_check_says_until_when_a_response_is_stapled(pki, tmp_path):
    file = tmp_path / "ocsp.der"
    file.write_bytes(response(pki.gateway.issued, pki.authority))
    [found] = findings(config_of(pki, pki.gateway, ocsp_response=file))
    assert (found.level, found.what[:16]) == (Level.INFO, "is stapled until")
    file.write_bytes(b"")
    [found] = findings(config_of(pki, pki.gateway, ocsp_response=file))
    assert (found.level, found.what) == (Level.WARNING, "is not stapled: it is empty")
    file.unlink()
    [found] = findings(config_of(pki, pki.gateway, ocsp_response=file))
    assert "cannot be read: No such file" in found.what
    assert findings(config_of(pki, pki.gateway)) == []


def test_a_certificate_with_must_staple_needs_a_response(pki, tmp_path):
    issued = pki.authority.server("strict")
    builder = x509.CertificateBuilder(
        issued.certificate.issuer,
        issued.certificate.subject,
        issued.certificate.public_key(),
        issued.certificate.serial_number,
        issued.certificate.not_valid_before_utc,
        issued.certificate.not_valid_after_utc,
        list(issued.certificate.extensions),
    ).add_extension(x509.TLSFeature([x509.TLSFeatureType.status_request]), critical=False)
    strict = builder.sign(pki.authority.key, hashes.SHA256())
    files = pki.write(type(issued)(strict, issued.key, issued.intermediates))
    [found] = findings(config_of(pki, files))
    assert (found.level, "has must-staple" in found.what) == (Level.WARNING, True)
    missing = tmp_path / "missing.der"
    [found] = findings(config_of(pki, files, ocsp_response=missing))
    assert (found.level, "has must-staple" in found.what) == (Level.WARNING, True)
