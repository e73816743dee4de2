"""The identity in a client's certificate, and whether a route admits it."""

import contextlib
import hashlib
import ssl
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from relay.demo.ca import Authority, LeafSpec, make_key
from relay.errors import Reason
from relay.tls import identity
from relay.tls.access_rules import AccessRules, compile_rules
from relay.tls.certificates.der import DerError, read_certificate
from relay.tls.certificates.names import alt_names_of, attributes_of, render
from relay.tls.certificates.x509_fields import to_der
from relay.tls.explain import Failure
from relay.tls.identity import _parse, admit
from relay.tls.raw import NULL, ffi, lib
from relay.tls.trust_store import valid_until as _valid_until
from tests.support.handshakes import (
    VERSIONS,
    allow,
    begin_session,
    client_context,
    meet_client,
    route_of,
)
from tests.support.identities import ALICE
from tests.support.odd import (
    CN,
    OU,
    SAN,
    SOUND,
    Odd,
    attribute,
    dns,
    extension,
    make,
    name,
    sequence,
    tlv,
    write_odd,
)

both_versions = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)


@dataclass
class Route:
    """A `ClientRules`."""

    rules: AccessRules
    ca_valid_until: dict[bytes, float]


def gate(ca_until=None, **rules):
    return Route(compile_rules(allow(**rules)), {} if ca_until is None else {b"the CA": ca_until})


RULES = [
    ({}, True),
    ({"cn": ("alice",)}, True),
    ({"cn": ("Alice",)}, False),
    ({"cn": ("alice.corp",)}, False),
    ({"ou": ("ops",)}, True),
    ({"ou": ("dev",)}, False),
    ({"san_dns": ("alice.corp",)}, True),
    ({"san_dns": ("ALICE.Corp",)}, True),
    ({"san_dns": ("*.corp",)}, True),
    ({"san_dns": ("*.alice.corp",)}, False),
    ({"san_dns": ("alice",)}, False),
    ({"san_dns": ("alice-corp",)}, False),
    ({"san_uri": ("spiffe://corp/alice",)}, True),
    ({"san_uri": ("spiffe://corp/*",)}, True),
    ({"san_uri": ("spiffe://*/alice",)}, True),
    ({"san_uri": ("spiffe://**",)}, True),
    ({"san_uri": ("spiffe://*",)}, False),
    ({"san_uri": ("spiffe://corp/",)}, False),
    ({"san_uri": ("spiffe://CORP/alice",)}, False),
    ({"fingerprint_sha256": (":".join(["ab"] * 32),)}, True),
    ({"fingerprint_sha256": ("AB" * 32,)}, True),
    ({"fingerprint_sha256": ("00" * 32,)}, False),
    ({"cn": ("bob",), "ou": ("dev",), "san_uri": ("spiffe://corp/**",)}, True),
    ({"cn": ("bob",), "ou": ("dev",)}, False),
]


@pytest.mark.parametrize(("rules", "allowed"), RULES)
def test_a_rule_allows_only_the_names_in_it(rules, allowed):
    refusal = admit(ALICE, gate(**rules), 1500)
    assert (refusal is None) is allowed
    if refusal is not None:
        assert refusal == Failure(
            Reason.NOT_ALLOWED,
            "no entry of allow matches; names in the certificate: alice, alice.corp,"
            f" spiffe://corp/alice;{' OU ops;' if 'ou' in rules else ''} SHA-256 {'AB' * 32}",
        )


def test_the_dates_of_the_leaf_are_exact_to_the_second():
    everybody = gate()
    assert admit(ALICE, everybody, 1000) is None
    assert admit(ALICE, everybody, 2000) is None
    assert admit(ALICE, everybody, 999.9) == Failure(
        Reason.NOT_YET_VALID, "certificate is not yet valid"
    )
    assert admit(ALICE, everybody, 2000.1) == Failure(Reason.EXPIRED, "certificate has expired")


def test_a_certificate_ends_with_its_ca():
    assert admit(ALICE, gate(1800), 1800) is None
    assert admit(ALICE, gate(1800), 1801) == Failure(
        Reason.EXPIRED, "the CA that issued the certificate has expired"
    )
    assert (
        admit(replace(ALICE, issuer_der=b"an intermediate that the client sent"), gate(1800), 1801)
        is None
    )


def test_no_certificate_and_unreadable_dates_are_refused():
    assert admit(None, gate(), 1500) == Failure(Reason.NO_CERTIFICATE)
    assert admit(replace(ALICE, not_after_at=0.0), gate(), 1500).reason is Reason.EXPIRED


def test_names_in_a_detail_are_one_short_line():
    refusal = admit(
        replace(ALICE, cn=("evil\n2026 forged line\x1b[2J", "x" * 10_000)), gate(cn=("bob",)), 1500
    )
    assert refusal.detail.isprintable()
    assert len(refusal.detail) < 700


def authority(subject, issuer, days, end=None):
    """A CA certificate with these names; self-signed, because no test verifies it."""
    key = make_key("ec-p256")
    start = datetime(2030, 1, 1, tzinfo=UTC)
    name, above = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (subject, issuer)
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(above)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
    )
    return (
        builder.not_valid_before(start - timedelta(days=1))
        .not_valid_after(start + timedelta(days=days))
        .sign(key, hashes.SHA256())
    )


def ends(*authorities):
    start = datetime(2030, 1, 1, tzinfo=UTC).timestamp()
    found = _valid_until(authorities)
    names = {
        each.subject.public_bytes(): each.subject.rfc4514_string().removeprefix("CN=")
        for each in authorities
    }
    return {names[subject]: (until - start) / 86_400 for subject, until in found.items()}


def test_a_ca_is_valid_as_long_as_it_and_all_above_it_are():
    assert ends(authority("root", "root", 10)) == {"root": 10}
    assert ends(
        authority("root", "root", 10), authority("low", "root", 20), authority("lower", "low", 30)
    ) == {"root": 10, "low": 10, "lower": 10}
    assert ends(
        authority("root", "root", 30), authority("low", "root", 20), authority("lower", "low", 10)
    ) == {"root": 30, "low": 20, "lower": 10}
    # Its issuer is not in the file.
    assert ends(authority("low", "elsewhere", 20)) == {"low": 20}


def test_a_renewed_ca_counts_with_its_newest_certificate():
    assert ends(
        authority("root", "root", 10), authority("root", "root", 40), authority("low", "root", 20)
    ) == {"root": 40, "low": 20}
    assert ends(authority("one", "two", 10), authority("two", "one", 20)) == {"one": 10, "two": 10}


@both_versions
def test_a_client_whose_ca_expired_is_refused_when_it_resumes(pki, version, tmp_path):
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(days=2)
    short = Authority.root("Short CA", not_after=end)
    files = pki.write(short.client("alice"))
    route = route_of(pki, client_ca=short.write(tmp_path / "short.pem"))
    context = client_context(pki, files, version)
    session = begin_session(route, context)
    with meet_client(route, context, session=session) as meeting:
        assert meeting.resumed
        assert admit(meeting.identity, route.trust, end.timestamp()) is None
        assert admit(meeting.identity, route.trust, end.timestamp() + 1) == Failure(
            Reason.EXPIRED, "the CA that issued the certificate has expired"
        )


@both_versions
@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        ({"cn": ("alice",)}, True),
        ({"ou": ("ops",)}, True),
        ({"san_dns": ("*.corp",)}, True),
        ({"san_uri": ("spiffe://corp/*",)}, True),
        (
            {
                "cn": ("bob",),
                "ou": ("dev",),
                "san_dns": ("*.other",),
                "san_uri": ("spiffe://other/**",),
            },
            False,
        ),
    ],
)
def test_rules_hold_in_a_real_handshake_full_and_resumed(pki, version, rules, allowed):
    context = client_context(pki, pki.client_spiffe, version)
    route = route_of(pki, allow=allow(**rules))

    def check(who):
        return admit(who, route.trust, time.time())

    with meet_client(route, context, check=check) as meeting:
        assert meeting.reason == ("done" if allowed else "not_allowed")
        assert meeting.identity.ou == ("ops",)
        if not allowed:
            assert meeting.alert == "SSLV3_ALERT_BAD_CERTIFICATE"
    # Without a check the full handshake succeeds; the rules must refuse the resumption.
    session = begin_session(route, context)
    with meet_client(route, context, session=session, check=check) as meeting:
        assert (meeting.reason, meeting.resumed) == ("done" if allowed else "not_allowed", True)
        assert meeting.identity.ou == ("ops",)
        if not allowed:
            assert meeting.alert.endswith("_ALERT_BAD_CERTIFICATE")


@both_versions
def test_a_session_of_an_expired_certificate_gets_its_alert(pki, version):
    context, route = client_context(pki, pki.client, version), route_of(pki)
    session = begin_session(route, context)
    with meet_client(
        route,
        context,
        session=session,
        check=lambda who: admit(who, route.trust, who.not_after_at + 1),
    ) as meeting:
        assert (meeting.reason, meeting.resumed, meeting.identity.cn) == (
            "expired",
            True,
            ("alice",),
        )
        assert meeting.alert.endswith("_ALERT_CERTIFICATE_EXPIRED")


@both_versions
def test_a_check_that_raises_refuses_a_resumption(pki, version):
    context, route = client_context(pki, pki.client, version), route_of(pki)
    session = begin_session(route, context)

    def broken(_who):
        raise ValueError("a bug")

    with (
        pytest.raises(ValueError, match="a bug"),
        meet_client(route, context, session=session, check=broken),
    ):
        pass


@both_versions
def test_a_fingerprint_is_the_one_that_openssl_prints(pki, version):
    certificate = pki.client.issued.certificate
    printed = ":".join(f"{byte:02X}" for byte in certificate.fingerprint(hashes.SHA256()))
    route = route_of(pki, allow=allow(fingerprint_sha256=(printed,)))
    for files, allowed in ((pki.client, True), (pki.client_spiffe, False)):
        with meet_client(
            route,
            client_context(pki, files, version),
            check=lambda who: admit(who, route.trust, time.time()),
        ) as meeting:
            assert (meeting.reason == "done") is allowed


@pytest.mark.parametrize("what", SOUND)
def test_any_certificate_can_be_allowed_by_fingerprint(pki, tmp_path, what):
    """A rule by fingerprint needs no names, and no parser for the certificate."""
    files = write_odd(tmp_path, "odd", SOUND[what], pki.authority)
    fingerprint = certificate_digest(files)
    route = route_of(pki, allow=allow(fingerprint_sha256=(fingerprint,)))
    for version in VERSIONS.values():
        context = client_context(pki, files, version)
        with meet_client(
            route, context, check=lambda who: admit(who, route.trust, time.time())
        ) as met:
            assert (met.reason, met.identity.fingerprint, met.identity.unread) == (
                "done",
                fingerprint,
                "",
            )
            assert met.identity.subject.isprintable()


@pytest.mark.parametrize(
    ("what", "rules"),
    [
        ("underscore", {"cn": ("my_service",)}),
        ("ampersand", {"cn": ("M&S",)}),
        ("asterisk", {"cn": ("*.example.com",)}),
        ("t61", {"cn": ("Müller",)}),
        ("bmp", {"cn": ("alice",)}),
        ("universal", {"cn": ("alice",)}),
        ("two in one part", {"ou": ("b",)}),
        *((each, {"san_dns": ("app.example.com",)}) for each in SOUND if "name" not in each),
    ],
)
def test_the_names_of_an_odd_certificate_match_rules(pki, tmp_path, what, rules):
    files = write_odd(tmp_path, "odd", SOUND[what], pki.authority)
    for names, reason in (
        (rules, "done"),
        ({"cn": ("other",), "san_dns": ("other.example.com",)}, "not_allowed"),
    ):
        route = route_of(pki, allow=allow(**names))
        with meet_client(
            route,
            client_context(pki, files),
            check=lambda who, route=route: admit(who, route.trust, time.time()),
        ) as met:
            assert met.reason == reason


@pytest.mark.parametrize("what", ["rest", "too many", "too many extensions"])
def test_an_unreadable_name_matches_no_rule_by_name(pki, tmp_path, what):
    """OpenSSL accepts these, so rules by name must not; the log line says why."""
    odd, said = {
        "rest": (
            Odd(san=extension(SAN, dns("app.example.com") + b"\5\0")),
            "its subjectAltName has an unexpected type",
        ),
        "too many": (
            Odd(san=extension(SAN, dns("app.example.com", *["a"] * 1024))),
            "its subjectAltName has more than 1024 parts",
        ),
        "too many extensions": (
            Odd(extensions=tuple(extension(f"1.2.3.{number}", b"") for number in range(260))),
            "its extensions cannot be read",
        ),
    }[what]
    files = write_odd(tmp_path, "odd", odd, pki.authority)
    for rules, reason in (
        ({"san_dns": ("app.example.com",)}, "not_allowed"),
        ({"fingerprint_sha256": (certificate_digest(files),)}, "done"),
    ):
        route = route_of(pki, allow=allow(**rules))
        with meet_client(
            route,
            client_context(pki, files),
            check=lambda who, route=route: admit(who, route.trust, time.time()),
        ) as met:
            assert met.reason == reason
            assert met.identity.unread == said
            assert reason == "done" or met.result.detail.startswith(
                f"no entry of allow matches; names in the certificate: odd ({said}); SHA-256 "
            )


def test_a_zero_byte_or_comma_does_not_end_a_name():
    """A zero byte or a comma inside a name does not turn it into another name."""
    names = alt_names_of(
        sequence(tlv(0x82, b"app.example.com\0.evil"), tlv(0x82, b"a, DNS:app.example.com"))
    )
    assert names.dns == ("a, DNS:app.example.com",)
    assert render(attributes_of(name(attribute(CN, "a,CN=b+c")))) == "CN=a\\,CN=b\\+c"


@given(st.binary(max_size=400))
def test_the_readers_raise_only_their_own_error(der):
    for reader in (read_certificate, attributes_of, alt_names_of):
        with contextlib.suppress(DerError):
            reader(der)


def test_no_changed_certificate_makes_the_parser_raise(pki):
    """Every byte changed in three ways; OpenSSL accepts many of these certificates."""
    der = pki.client_spiffe.issued.certificate.public_bytes(Encoding.DER)
    read = 0
    for at in range(len(der)):
        for mask in (1, 0x80, 0xFF):
            bent = bytearray(der)
            bent[at] ^= mask
            pointer = pointer_of(bytes(bent))
            if pointer is not None:
                who = _parse(pointer, to_der(pointer), b"\0" * 32)
                assert who.subject.isprintable()
                assert who.serial
                read += 1
    assert read > len(der)


def pointer_of(der):
    """The X509 * that OpenSSL parsed, or None."""
    bio = lib.BIO_new_mem_buf(ffi.from_buffer(der), len(der))
    found = lib.d2i_X509_bio(bio, NULL)
    lib.BIO_free(bio)
    lib.ERR_clear_error()
    return None if found == NULL else ffi.gc(found, lib.X509_free)


def certificate_digest(files):
    return (
        hashlib.sha256(ssl.PEM_cert_to_DER_cert(files.certificate.read_text())).hexdigest().upper()
    )


LARGE = {
    "names": Odd(san=extension(SAN, dns(*["a"] * 9000))),
    "attributes": Odd(subject=name(*[attribute(CN, "a")] * 1500)),
    "extensions": Odd(
        extensions=tuple(extension(f"1.2.3.{number}", b"") for number in range(1700))
    ),
    "serial": Odd(serial=tlv(2, b"\x7f" * 28_000)),
    "common name": Odd(subject=name(attribute(CN, "a\n" * 14_000))),
}


@pytest.mark.parametrize("what", LARGE)
def test_a_large_refused_certificate_is_logged_by_size_and_common_name(pki, tmp_path, what):
    """It is not signed by a trusted CA, so any client could make parsing it costly."""
    files = write_odd(tmp_path, "large", LARGE[what], pki.foreign_authority)
    route = route_of(pki)
    with meet_client(route, client_context(pki, files)) as met:
        who = met.identity
        size = len(ssl.PEM_cert_to_DER_cert(files.certificate.read_text()))
        assert size > identity.LARGE_BYTES
        assert (met.reason, who.fingerprint) == ("unknown_ca", certificate_digest(files))
        assert who.subject.endswith(
            f" (a certificate of {size} bytes, not read; SHA-256 {who.fingerprint})"
        )
        assert who.subject.startswith("CN=")
        assert who.subject.isprintable()
        assert len(repr(who)) < 1000
        assert bytes.fromhex(who.fingerprint) not in identity._known


@pytest.mark.parametrize("what", LARGE)
def test_a_large_verified_certificate_is_read_within_limits(pki, tmp_path, what):
    files = write_odd(tmp_path, "large", LARGE[what], pki.authority)
    route = route_of(pki, allow=allow(fingerprint_sha256=(certificate_digest(files),)))
    with meet_client(
        route, client_context(pki, files), check=lambda who: admit(who, route.trust, time.time())
    ) as met:
        assert met.reason == "done"
        who = met.identity
        assert max(map(len, (who.subject, who.issuer, who.serial))) <= 512
        assert sum(map(len, (who.cn, who.ou, who.san_dns, who.san_uri))) <= 1024


@pytest.mark.parametrize("what", LARGE)
def test_a_refused_certificate_costs_a_bounded_time(pki, tmp_path, what):
    """Compared with OpenSSL's own parsing of the same bytes, for any machine."""
    der, _ = make(LARGE[what], pki.foreign_authority)
    pointer = pointer_of(der)
    theirs = min(cpu_of(lambda: pointer_of(der)) for _ in range(20))
    ours = min(cpu_of(lambda: identity.identity_of(pointer, remember=False)) for _ in range(20))
    assert ours < max(theirs, 0.0005)


def cpu_of(work):
    begun = time.thread_time()
    work()
    return time.thread_time() - begun


def test_a_subject_of_too_many_parts_is_shown_by_its_cn(pki):
    """A rule by name does not match it: its names are not read."""
    odd = Odd(subject=name(*[attribute(CN, "alice")] * 200))
    who = identity.identity_of(pointer_of(make(odd, pki.authority)[0]))
    assert who.subject == "CN=alice (not read: the subject has more than 128 parts)"
    assert admit(who, gate(cn=("alice",)), time.time()).reason is Reason.NOT_ALLOWED
    assert admit(who, gate(fingerprint_sha256=(who.fingerprint,)), time.time()) is None


def test_the_cache_is_bounded_in_bytes(pki, tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "_CACHE_BYTES", 40_000)
    identity._known.clear()
    identity._known_bytes = 0
    for number in range(8):
        odd = Odd(subject=name(*[attribute(OU, f"{number}" * 2000)] * 5))
        identity.identity_of(pointer_of(make(odd, pki.authority)[0]))
        assert sum(len(who.ou) * 2000 for who in identity._known.values()) <= 40_000


def test_the_cache_is_bounded_in_number(pki, monkeypatch):
    monkeypatch.setattr(identity, "_CACHE_ENTRIES", 3)
    identity._known.clear()
    route = route_of(pki)
    for number in range(5):
        files = pki.write(pki.authority.issue(LeafSpec(f"client {number}", purposes=("client",))))
        for _ in range(2):
            with meet_client(route, client_context(pki, files)) as meeting:
                assert meeting.identity.cn == (f"client {number}",)
        assert len(identity._known) <= 3
