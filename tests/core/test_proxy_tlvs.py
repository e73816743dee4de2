"""The numbers of PROXY v2's TLVs are those of the specification."""

import pytest

from relay.core.proxy_tlvs import UNIQUE_ID_BYTES, SslClient, SslTlv, Tlv

# haproxy/doc/proxy-protocol.txt, sections 2.2 to 2.2.8; the last four are vendors'.
SPECIFIED = [
    (Tlv.ALPN, 0x01),
    (Tlv.AUTHORITY, 0x02),
    (Tlv.CRC32C, 0x03),
    (Tlv.NOOP, 0x04),
    (Tlv.UNIQUE_ID, 0x05),
    (Tlv.SSL, 0x20),
    (SslTlv.VERSION, 0x21),
    (SslTlv.CN, 0x22),
    (SslTlv.CIPHER, 0x23),
    (SslTlv.SIG_ALG, 0x24),
    (SslTlv.KEY_ALG, 0x25),
    (SslTlv.GROUP, 0x26),
    (SslTlv.SIG_SCHEME, 0x27),
    (SslTlv.CLIENT_CERT, 0x28),
    (Tlv.NETNS, 0x30),
    (SslClient.SSL, 0x01),
    (SslClient.CERT_CONN, 0x02),
    (SslClient.CERT_SESS, 0x04),
    (Tlv.GCP_PSC_CONNECTION_ID, 0xE0),
    (Tlv.ALIBABA, 0xE1),
    (Tlv.AWS, 0xEA),
    (Tlv.AZURE, 0xEE),
]


@pytest.mark.parametrize(("tlv", "number"), SPECIFIED, ids=lambda value: getattr(value, "name", ""))
def test_a_tlv_has_its_number_of_the_specification(tlv, number):
    assert tlv == number


def test_a_unique_id_has_128_bytes_at_most():
    assert UNIQUE_ID_BYTES == 128
