"""Reading lists: what is refused, with which sentence, and who signed a list."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from relay.demo.ca import Authority
from relay.files import Files
from relay.tls.certificates.der import DerError
from relay.tls.revocation.crl import (
    check_date,
    entries_of,
    find_signer,
    parse_list,
    parse_lists,
    read_lists,
)
from relay.tls.revocation.fields import CrlError, read_entries
from tests.support.crls import COMPROMISED, listed, make_crl, openssl_crl, serial_of, to_pem
from tests.support.odd import sequence, tlv
from tests.support.pki import parsed
from tests.support.programs import needs

ROOT = Authority.root("Root")
OTHER = Authority.root("Other")
NAMESAKE = Authority.root("Root")


def problems_of(data):
    problems = []
    found = parse_lists("here", "a.crl", data, problems)
    return found, [f"{each.what}; {each.remedy}" for each in problems]


def why(call, *arguments):
    with pytest.raises(CrlError) as caught:
        call(*arguments)
    return caught.value.what


def test_der_and_pem_are_read_alike():
    one, two = make_crl(ROOT, [1, 2]), make_crl(ROOT, [3], number=2)
    [from_der], none = problems_of(one)
    assert none == []
    found, none = problems_of(b"a comment\n" + to_pem(one, two))
    assert none == []
    assert found[0].der == from_der.der
    assert [each.number for each in found] == [1, 2]
    assert found[1].source == "a.crl (list 2)"
    assert [each.serial for each in entries_of(found[1])] == [b"\3"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "it is empty"),
        (b"  \r\n", "it is empty"),
        (b"<!DOCTYPE html><html>503</html>", "it looks like an HTML page"),
        (b"\xef\xbb\xbf\n<html>", "it looks like an HTML page"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "named CERTIFICATE"),
        (b"\xff\xfe-\0-\0", "it is UTF-16 text"),
        (b"no such host\n", "it is neither DER nor PEM"),
        (b"0", "ends in the middle of an element"),
        (b"0\x03\x02\x01\x05", "fields of a list in their order"),
        (b"-----BEGIN X509 CRL-----\nMIIB\n", "has no END line; the file was truncated"),
        (b"-----BEGIN X509 CRL-----\n-----END X509 CRL-----\n", "is empty"),
    ],
)
def test_a_file_without_a_list_is_refused_with_what_it_is(data, sentence):
    found, [problem] = problems_of(data)
    assert found == []
    assert sentence in problem
    assert problem.startswith("a.crl ")


def test_a_truncated_list_is_refused_at_every_byte():
    whole = make_crl(ROOT, [1, 2, 3])
    for size in range(len(whole)):
        found, problems = problems_of(whole[:size])
        assert found == []
        assert len(problems) == 1


def test_bytes_after_the_end_are_refused():
    found, [problem] = problems_of(make_crl(ROOT) + make_crl(ROOT))
    assert found == []
    assert "bytes after its end" in problem
    assert problems_of(make_crl(ROOT) + b"\n")[1] == []


def test_a_huge_file_is_refused_without_reading_it(tmp_path):
    file = tmp_path / "huge.crl"
    with file.open("wb") as stream:
        stream.truncate(200_000_000)
    problems = []
    assert read_lists("here", file, problems, Files()) == []
    assert "is larger than 64 MiB" in problems[0].what


@pytest.mark.parametrize("kind", ["missing", "directory"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, kind):
    file = tmp_path if kind == "directory" else tmp_path / "none.crl"
    problems = []
    assert read_lists("here", file, problems, Files()) == []
    assert str(file) in problems[0].what


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
ISSUER = x509.CertificateIssuer([x509.DirectoryName(OTHER.certificate.subject)])


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"scope": {"indirect_crl": True}}, "is an indirect list"),
        ({"scope": {"only_contains_attribute_certs": True}}, "attribute certificates"),
        (
            {"scope": {"only_some_reasons": frozenset((COMPROMISED,)), "uris": ("http://a/1",)}},
            "is only about some reasons",
        ),
        ({"extensions": [(UNKNOWN, True)]}, "critical extension that the relay does not know"),
        ({"number": None, "base": 1}, "is a delta without a number"),
    ],
)
def test_lists_of_unsupported_kinds_are_refused(how, sentence):
    assert sentence in why(parse_list, "a.crl", make_crl(ROOT, [1], **how))


def test_a_shard_named_without_a_uri_is_refused():
    named = x509.DirectoryName(ROOT.certificate.subject)
    how = {"full_name": [named]}
    assert "another way than by a URI" in why(parse_list, "a.crl", make_crl(ROOT, scope=how))


def test_an_uncritical_unknown_extension_is_accepted():
    assert listed(ROOT, 1, extensions=[(UNKNOWN, False)], entry_extensions=[(UNKNOWN, False)])


@pytest.mark.parametrize(
    ("extension", "sentence"),
    [(ISSUER, "is an indirect list"), (UNKNOWN, "entry with a critical extension")],
)
def test_entries_of_unsupported_kinds_are_refused(extension, sentence):
    crl = listed(ROOT, 1, 2, entry_extensions=[(extension, True)])
    assert sentence in why(list, entries_of(crl))


def test_entries_have_serial_day_and_reason():
    serials = [1, 0x80, 2**159 - 1, 2**127]
    crl = listed(ROOT, *((serial, COMPROMISED) for serial in serials), 5)
    found = list(entries_of(crl))
    assert [each.serial for each in found] == [*map(serial_of, serials), b"\5"]
    assert [each.reason for each in found] == [1, 1, 1, 1, 0]
    day = (datetime(2026, 11, 26, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).days
    assert {each.day for each in found} == {day}


def test_long_entries_are_read_like_short_ones():
    long = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\4\x82\1\0" + bytes(256))
    crl = listed(ROOT, (7, COMPROMISED), (300, COMPROMISED), entry_extensions=[(long, False)])
    assert [(each.serial, each.reason) for each in entries_of(crl)] == [
        (b"\7", 1),
        (b"\1\x2c", 1),
    ]


@pytest.mark.parametrize("number", [5, 0x80, 0xFF, 0, 2**159 - 1])
@pytest.mark.parametrize("needless", [1, 2, 30])
def test_needless_bytes_hide_no_serial_number(number, needless):
    """OpenSSL reads no certificate that has them, so the list's are left out."""
    usual = serial_of(number)
    entry = sequence(tlv(2, bytes(needless) + usual), tlv(0x17, b"261126100000Z"))
    [found] = read_entries(entry, (0, len(entry)))
    assert found.serial == usual


@pytest.mark.parametrize(("spelled", "usual"), [("ff85", "85"), ("ffff85", "85"), ("ff", "ff")])
def test_negative_serial_numbers_have_one_spelling(spelled, usual):
    entry = sequence(tlv(2, bytes.fromhex(spelled)), tlv(0x17, b"261126100000Z"))
    [found] = read_entries(entry, (0, len(entry)))
    assert found.serial == bytes.fromhex(usual)


def test_an_entry_without_a_serial_number_is_refused():
    entry = sequence(tlv(2, b""), tlv(0x17, b"261126100000Z"))
    with pytest.raises(DerError, match="without a serial number"):
        list(read_entries(entry, (0, len(entry))))


def test_a_list_from_the_future_is_refused():
    crl = listed(ROOT, age=timedelta(minutes=-10))
    now_at = datetime.now(UTC).timestamp()
    assert "was issued in the future" in why(check_date, crl, now_at)
    check_date(listed(ROOT, age=timedelta(minutes=-4)), now_at)


def test_the_signer_is_found_among_namesakes():
    cas = [parsed(each.certificate) for each in (OTHER, NAMESAKE, ROOT)]
    for authority_key in (True, False):
        assert find_signer(listed(ROOT, authority_key=authority_key), cas) == cas[2]
        assert find_signer(listed(NAMESAKE, authority_key=authority_key), cas) == cas[1]


@pytest.mark.parametrize(
    ("crl", "sentence"),
    [
        (listed(OTHER), "belongs to no CA that is trusted here"),
        (listed(NAMESAKE), "its authority key identifier is not that of the CA's key"),
        (listed(NAMESAKE, authority_key=False), "its signature does not verify"),
        (listed(ROOT, signer=NAMESAKE.key), "its signature does not verify"),
    ],
)
def test_a_list_of_another_ca_is_refused(crl, sentence):
    assert sentence in why(find_signer, crl, [parsed(ROOT.certificate)])


def test_a_changed_list_is_refused():
    der = bytearray(make_crl(ROOT, [0x1234567890]))
    der[der.index(bytes.fromhex("1234567890")) + 4] ^= 1
    crl = parse_list("a.crl", bytes(der))
    assert "its signature does not verify" in why(find_signer, crl, [parsed(ROOT.certificate)])


def ca_with(key, *usages, name="Root", hash_of=None):
    """A root CA with these key usages, without keyUsage if there are none."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=9))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    if usages:
        usage = x509.KeyUsage(
            *([False] * 5), *(each in usages for each in ("sign", "crl")), *([False] * 2)
        )
        builder = builder.add_extension(usage, critical=True)
    return builder.sign(key, hash_of)


def test_a_ca_whose_key_usage_lacks_crl_sign_is_refused():
    key = ec.generate_private_key(ec.SECP256R1())
    may_not, may, without = (
        parsed(ca_with(key, *usages, hash_of=hashes.SHA256()))
        for usages in (("sign",), ("sign", "crl"), ())
    )
    crl = listed(Authority(ROOT.certificate, key))
    assert "lacks cRLSign" in why(find_signer, crl, [may_not])
    assert find_signer(crl, [may_not, may]) == may
    assert find_signer(crl, [without]) == without


RSA = rsa.generate_private_key(65537, 2048)


@pytest.mark.parametrize(
    ("key", "hash_of"),
    [
        (RSA, hashes.SHA256()),
        (RSA, hashes.SHA512()),
        (ec.generate_private_key(ec.SECP384R1()), hashes.SHA384()),
    ],
)
def test_the_usual_signatures_are_verified(key, hash_of):
    ca = parsed(ca_with(key, hash_of=hash_of))
    other = parsed(ca_with(ec.generate_private_key(ec.SECP256R1()), hash_of=hashes.SHA256()))
    crl = listed(Authority(ROOT.certificate, key), authority_key=False, algorithm=hash_of)
    assert find_signer(crl, [other, ca]) == ca
    with pytest.raises(CrlError):
        find_signer(crl, [other])


def signed_by_hand(key, **how):
    """A list signed with what make_crl has no parameter for."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ROOT.certificate.subject)
        .last_update(datetime.now(UTC) - timedelta(hours=1))
        .next_update(datetime.now(UTC) + timedelta(days=1))
    )
    return parse_list("a.crl", builder.sign(key, **how).public_bytes(Encoding.DER))


def test_pss_and_edwards_signatures_are_verified():
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    crl = signed_by_hand(RSA, algorithm=hashes.SHA256(), rsa_padding=pss)
    ca = parsed(ca_with(RSA, hash_of=hashes.SHA256()))
    assert find_signer(crl, [ca]) == ca
    key = ed25519.Ed25519PrivateKey.generate()
    ca = parsed(ca_with(key))
    assert find_signer(signed_by_hand(key, algorithm=None), [ca]) == ca


@needs("openssl")
def test_old_signatures_are_refused(tmp_path):
    old = Authority.root("Old", key_type="rsa-2048")
    for name in ("sha1", "md5"):
        made = openssl_crl(tmp_path / name, old, [], "-md", name)
        assert "refuses such certificates" in why(parse_list, "a.crl", made)


@needs("openssl")
def test_the_list_of_openssl_is_read(tmp_path):
    leaves = [ROOT.client(name).certificate for name in ("a", "b", "c")]
    revoked = list(zip(leaves, ("keyCompromise", "certificateHold", "unspecified"), strict=True))
    crl = parse_list("a.crl", openssl_crl(tmp_path / "one", ROOT, revoked))
    assert find_signer(crl, [parsed(ROOT.certificate)])
    assert crl.number == 0x11
    found = {each.serial: each.reason for each in entries_of(crl)}
    assert found == {
        serial_of(leaf): reason for leaf, reason in zip(leaves, (1, 6, 0), strict=True)
    }


@needs("openssl")
def test_the_first_version_of_the_format_is_read(tmp_path):
    leaf = ROOT.client("a").certificate
    made = openssl_crl(tmp_path / "one", ROOT, [(leaf, "unspecified")], extensions=False)
    crl = parse_list("a.crl", made)
    assert crl.number is None
    assert find_signer(crl, [parsed(ROOT.certificate)])
    assert [each.serial for each in entries_of(crl)] == [serial_of(leaf)]


def test_the_scope_of_a_shard_is_read():
    uris = ("http://a/1.crl", "http://b/1.crl")
    crl = listed(ROOT, scope={"uris": uris, "only_contains_user_certs": True})
    assert crl.scope.uris == uris
    assert crl.scope.covers(is_ca=False, uris=("http://b/1.crl",))
    assert not crl.scope.covers(is_ca=True, uris=uris)
    assert not crl.scope.covers(is_ca=False, uris=("http://a/2.crl",))
    assert not crl.scope.covers(is_ca=False, uris=())
    only_cas = listed(ROOT, scope={"only_contains_ca_certs": True}).scope
    assert only_cas.covers(is_ca=True, uris=())
    assert not only_cas.covers(is_ca=False, uris=())


def test_the_next_publication_of_a_microsoft_ca_is_read():
    value = b"\x17\x0d261201120000Z"
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.311.21.4"), value)
    crl = listed(ROOT, extensions=[(extension, False)])
    assert crl.next_publish == datetime(2026, 12, 1, 12, tzinfo=UTC).timestamp()
