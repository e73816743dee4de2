"""Files that are damaged, or that have another format than PEM."""

import base64
import random
import time

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, pkcs12
from cryptography.hazmat.primitives.serialization.pkcs7 import serialize_certificates
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ConfigError
from relay.tls.certificates.pem import load_authorities, load_key_pair
from relay.tls.certificates.pem_blocks import read_blocks

WHERE = "listener.https.route[0].client_ca"


def problems_of(file):
    with pytest.raises(ConfigError) as caught:
        load_authorities(WHERE, file)
    assert all(str(file) in each.what and each.remedy for each in caught.value.problems)
    assert all(str(each).isprintable() for each in caught.value.problems)
    return caught.value.problems


CRL = b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"
REQUEST = CRL.replace(b"X509 CRL", b"CERTIFICATE REQUEST")
TAKEN = {
    "crlf": lambda ca: ca.replace(b"\n", b"\r\n"),
    "cr": lambda ca: ca.replace(b"\n", b"\r"),
    "byte order mark": lambda ca: b"\xef\xbb\xbf" + ca,
    "text around": lambda ca: b"subject=CN=Test CA\n" + ca + b"\nthe end: -----\n",
    "indented": lambda ca: b"".join(b"  " + line + b" \n" for line in ca.splitlines()),
    "no line end": lambda ca: ca.rstrip(b"\n"),
    "two on one line": lambda ca: ca.rstrip(b"\n") + ca,
    "one line": lambda ca: b"".join(ca.splitlines()),
    "old label": lambda ca: ca.replace(b" CERTIFICATE-", b" X509 CERTIFICATE-"),
    "revocation list beside it": lambda ca: ca + CRL,
    "explanations with colons": lambda ca: ca.replace(b"-----\n", b"-----\nComment: old\n\n", 1),
}  # fmt: skip


@pytest.mark.parametrize("what", TAKEN)
def test_a_file_as_tools_and_editors_leave_it_is_read(pki, tmp_path, what):
    file = tmp_path / "ca.pem"
    file.write_bytes(TAKEN[what](pki.ca.read_bytes()))
    assert [each.subject.rfc4514_string() for each in load_authorities(WHERE, file)] == [
        "CN=Test CA"
    ]


def _pkcs12(pki):
    return pkcs12.serialize_key_and_certificates(
        b"x", pki.client.issued.key, pki.client.issued.certificate, None, NoEncryption()
    )


def _trusted(pki):
    return pki.ca.read_bytes().replace(b" CERTIFICATE-", b" TRUSTED CERTIFICATE-")


NO_BLOCK = "give the path of the file that contains a CERTIFICATE block"


def _der(pki):
    return pki.authority.certificate.public_bytes(Encoding.DER)


def _pkcs7(encoding):
    return lambda pki: serialize_certificates([pki.authority.certificate], encoding)


OTHER = {
    "empty": (lambda _: b"", "the file is empty"),
    "white space": (lambda _: b" \n\n", "the file is empty"),
    "der": (_der, "openssl x509 -inform DER"),
    "pkcs12": (_pkcs12, "openssl pkcs12 -nodes"),
    "pkcs7": (_pkcs7(Encoding.PEM), "openssl pkcs7 -print_certs"),
    "pkcs7 in der": (_pkcs7(Encoding.DER), "openssl pkcs7 -inform DER"),
    "utf16": (lambda pki: pki.ca.read_text().encode("utf-16"), "iconv -f UTF-16"),
    "utf16 without mark": (lambda pki: pki.ca.read_text().encode("utf-16-be"), "iconv -f UTF-16"),
    "trusted": (_trusted, "openssl x509 -in FILE"),
    "request": (lambda _: REQUEST, "have a CA sign it"),
    "revocation list": (lambda _: CRL, "give the path of the CA's certificate"),
    "base64 alone": (
        lambda pki: b"".join(pki.ca.read_bytes().splitlines()[1:-1]),
        "add -----BEGIN CERTIFICATE-----",
    ),
    "key store": (lambda _: b"\xfe\xed\xfe\xed\0\0\0\2", "keytool"),
    "zeros": (lambda _: b"\0" * 4096, NO_BLOCK),
    "page": (lambda _: b"<html>404 not found</html>", NO_BLOCK),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHER)
def test_a_file_of_another_format_has_a_remedy(pki, tmp_path, what):
    make, remedy = OTHER[what]
    file = tmp_path / "ca.pem"
    file.write_bytes(make(pki))
    [problem] = problems_of(file)
    assert problem.what == f"{file} has no PEM certificate in it"
    assert remedy in problem.remedy
    with pytest.raises(ConfigError):
        load_key_pair(WHERE, file, file)


def test_a_trusted_certificate_among_others_is_not_skipped(pki, tmp_path):
    """It contains trust settings: skipping it in silence would be as wrong as trusting
    it.
    """
    file = tmp_path / "ca.pem"
    file.write_bytes(pki.ca.read_bytes() + _trusted(pki))
    [problem] = problems_of(file)
    assert "TRUSTED CERTIFICATE" in problem.what


@pytest.mark.parametrize(
    ("bend", "said"),
    [
        (lambda ca: ca[:-30], "has no END line"),
        (lambda ca: ca[: len(ca) // 2], "has no END line"),
        (lambda ca: ca[:200] + b"\n-----END CERTIFICATE-----\n", "cannot be parsed"),
        (lambda ca: ca[:100] + b"!" + ca[101:], "contains damaged base64"),
        (
            lambda ca: ca.replace(b"END CERTIFICATE", b"END PRIVATE KEY"),
            "ends with END PRIVATE KEY",
        ),
        (lambda _: b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", "is empty"),
    ],
)
def test_a_damaged_block_is_named_by_its_number(pki, tmp_path, bend, said):
    file = tmp_path / "ca.pem"
    file.write_bytes(pki.foreign_ca.read_bytes() + bend(pki.ca.read_bytes()))
    [problem] = problems_of(file)
    assert problem.what.startswith(f"certificate 2 of 2 in {file}")
    assert said in problem.what


def test_the_subject_of_a_damaged_certificate_is_named_if_readable(pki, tmp_path):
    der = bytearray(pki.authority.certificate.public_bytes(Encoding.DER))
    at = der.find(b"\x17\x0d") + 2  # the first date
    der[at : at + 13] = b"notadateatall"
    file = tmp_path / "ca.pem"
    file.write_bytes(
        b"-----BEGIN CERTIFICATE-----\n"
        + base64.encodebytes(bytes(der))
        + b"-----END CERTIFICATE-----\n"
    )
    [problem] = problems_of(file)
    assert '("CN=Test CA") cannot be parsed' in problem.what


def test_many_damaged_blocks_are_few_problems(tmp_path):
    file = tmp_path / "ca.pem"
    file.write_bytes(b"-----BEGIN CERTIFICATE-----\n" * 1000)
    problems = problems_of(file)
    assert len(problems) == 6
    assert problems[-1].what == f"995 more certificates in {file} cannot be parsed"


def test_reading_takes_time_in_proportion_to_the_file():
    """Otherwise every BEGIN without an END would search the rest of the file."""

    def cpu_of(count):
        data = b"-----BEGIN CERTIFICATE-----\nAAAA\n" * count
        begun = time.thread_time()
        assert len(read_blocks(data)) == count
        return time.thread_time() - begun

    assert min(cpu_of(40_000) for _ in range(3)) < 10 * min(cpu_of(10_000) for _ in range(3))


@given(
    st.lists(
        st.sampled_from(
            [
                b"-----BEGIN A-----",
                b"-----END A-----",
                b"-----BEGIN PRIVATE KEY-----",
                b"-----END PRIVATE KEY-----",
                b"\n",
                b"AAAA",
                b"Proc-Type: 4,ENCRYPTED",
                b":",
                b"\0",
            ]
        )
    )
)
def test_no_order_of_lines_raises(parts):
    for block in read_blocks(b"".join(parts)):
        assert block.fault or block.data
        assert block.encrypted in {True, False}


def test_no_bytes_raise(tmp_path):
    random_ = random.Random(7)
    file = tmp_path / "ca.pem"
    for _ in range(300):
        file.write_bytes(random_.randbytes(random_.randrange(200)))
        problems_of(file)
