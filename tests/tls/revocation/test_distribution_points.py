"""Which distribution points of a certificate count."""

import pytest
from cryptography import x509

from relay.tls.certificates.der import DerError
from relay.tls.revocation.distribution_points import read_issuing_point, uris_of
from tests.support.crls import COMPROMISED, issuing_point

CA = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "CA")])


def point(*uris, reasons=None, issuer=None):
    names = [x509.UniformResourceIdentifier(uri) for uri in uris]
    return x509.DistributionPoint(names or None, None, reasons, issuer)


def value_of(*points):
    return x509.CRLDistributionPoints(points).public_bytes()


def test_the_uris_of_all_points_are_read_once():
    value = value_of(point("http://a/1", "ldap://b"), point("http://c"), point("http://a/1"))
    assert uris_of(value) == ("http://a/1", "ldap://b", "http://c")


def test_a_point_of_another_issuer_or_some_reasons_is_skipped():
    issuer = [x509.DirectoryName(CA)]
    value = value_of(
        point("http://a", issuer=issuer), point("http://b", reasons=frozenset((COMPROMISED,)))
    )
    assert uris_of(value) == ()


def test_a_relative_name_is_no_uri():
    relative = x509.RelativeDistinguishedName(list(CA))
    value = value_of(x509.DistributionPoint(None, relative, None, None))
    assert uris_of(value) == ()
    found = read_issuing_point(issuing_point(relative_name=relative).public_bytes())
    assert "another way than by a URI" in found.refused


@pytest.mark.parametrize("read", [uris_of, read_issuing_point])
@pytest.mark.parametrize("value", [b"", b"\x30", b"\x05\x00", b"\x30\x02\x05\x00", b"\x30\x81"])
def test_malformed_values_raise_der_error(read, value):
    with pytest.raises(DerError):
        read(value)
