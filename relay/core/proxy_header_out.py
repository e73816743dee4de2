"""Builds the PROXY header that tells a backend who the client is, versions 1 and 2.

The format: HAProxy's doc/proxy-protocol.txt of 2026-04-27. `core.proxy_protocol` parses
the other direction.

A header is built for each connection to a backend. What many connections have in
common (the names of a cipher, a key) is encoded once, in `common_tlvs`, and kept by its
caller.

Never: sends anything, or lets what a peer sent make a header longer than LONGEST.
Next: `relay.worker.preface.go_on`
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address
from struct import Struct
from typing import Final, NamedTuple

from relay.config.pool_model import PROXY_TLVS, Pool
from relay.core.proxy_tlvs import UNIQUE_ID_BYTES, SslClient, SslTlv, Tlv

# The protocol's limit: the length has two bytes.
LONGEST: Final = 16 + 65_535
# A common name has 64 characters at most (RFC 5280, A.1), but OpenSSL accepts longer
# ones. A part of a name would be another name, so a longer one is not sent.
LONGEST_CN: Final = 256

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_LOCAL, _PROXY = 0x20, 0x21
_UNSPEC, _TCP4, _TCP6 = 0x00, 0x11, 0x21
_MAPPED = b"\0" * 10 + b"\xff\xff"

# As numbers: each look-up of an Enum's member takes 0.06 µs.
_ALPN, _AUTHORITY, _UNIQUE_ID, _SSL = map(int, (Tlv.ALPN, Tlv.AUTHORITY, Tlv.UNIQUE_ID, Tlv.SSL))
_RESUMED = int(SslClient.SSL | SslClient.CERT_SESS)
_FULL = int(_RESUMED | SslClient.CERT_CONN)
_unspec_start = Struct(">12sBBH").pack
_tcp4_start = Struct(">12sBBH4s4sHH").pack
_tcp6_start = Struct(">12sBBH16s16sHH").pack
_ssl_start = Struct(">BI").pack
_tlv_start = Struct(">BH").pack
_BEFORE_TLVS = 16 + 36

# Headers of a connection that the relay makes for itself: UNKNOWN in version 1, LOCAL
# in version 2 (2.1 and 2.2 of the specification).
OWN_V1: Final = b"PROXY UNKNOWN\r\n"
OWN_V2: Final = _unspec_start(_SIGNATURE, _LOCAL, _UNSPEC, 0)


class SendProxy(NamedTuple):
    """The header of a pool's connections. `tlvs` are for version 2."""

    version: int
    inside_tls: bool
    tlvs: frozenset[str]
    certificate: bool

    @classmethod
    def of(cls, pool: Pool) -> SendProxy | None:
        """What the pool's settings say; None if it sends no header."""
        if not pool.send_proxy:
            return None
        tlvs = PROXY_TLVS if pool.send_proxy_tlvs is None else pool.send_proxy_tlvs
        return cls(
            1 if pool.send_proxy == "v1" else 2,
            pool.send_proxy == "v2-inside-tls",
            frozenset(tlvs),
            pool.send_proxy_certificate,
        )

    @property
    def name(self) -> str:
        """For messages about a failure: perhaps the backend expects no header."""
        return f"a PROXY v{self.version} header{' inside TLS' if self.inside_tls else ''}"

    @property
    def own(self) -> bytes:
        """The header of a connection that is made for no client: a health check."""
        return OWN_V1 if self.version == 1 else OWN_V2


class Addresses(NamedTuple):
    """Where the client connected from and to: IP addresses as text, and ports."""

    source: str
    source_port: int
    destination: str
    destination_port: int


class Tls(NamedTuple):
    """What the TLS handshake with the client agreed on, and its common name.

    `key_alg` and `sig_alg` are of our certificate. `sig_scheme` is "" if we signed
    nothing: in a resumption.
    """

    version: str
    cipher: str
    group: str
    resumed: bool
    cn: str
    key_alg: str
    sig_alg: str
    sig_scheme: str


def build_v1(addresses: Addresses | None) -> bytes:
    """A header of version 1; UNKNOWN if the addresses are not known."""
    if addresses is None:
        return OWN_V1
    source, source_port, destination, destination_port = addresses
    family = "TCP4"
    if ":" in source or ":" in destination:
        start, end = packed(source), packed(destination)
        if len(start) == 4 and len(end) == 4:
            source, destination = _dotted(start), _dotted(end)
        else:
            family, source, destination = "TCP6", _text6(start), _text6(end)
    line = f"PROXY {family} {source} {destination} {source_port} {destination_port}\r\n"
    return line.encode("ascii")


def build_v2(addresses: Addresses | None, tlvs: bytes) -> bytes:
    """A header of version 2, for a client.

    Without addresses it is still a PROXY header, so that receivers read its TLVs.
    """
    if addresses is None:
        return _unspec_start(_SIGNATURE, _PROXY, _UNSPEC, len(tlvs)) + tlvs
    source, port, destination, to_port = addresses
    start, end, size = packed(source), packed(destination), len(tlvs)
    if len(start) == 4 == len(end):
        size += 12
        return _tcp4_start(_SIGNATURE, _PROXY, _TCP4, size, start, end, port, to_port) + tlvs
    start, end, size = _sixteen(start), _sixteen(end), size + 36
    return _tcp6_start(_SIGNATURE, _PROXY, _TCP6, size, start, end, port, to_port) + tlvs


class CommonTlvs(NamedTuple):
    """The TLVs of all connections of such a client, encoded once.

    Between `tlvs` and the SSL TLV stands the session's own: its identifier. Its kind
    and the first byte of its length, which is 0, are the end of `tlvs`.
    """

    tlvs: bytes
    ssl: bytes  # the SSL TLV; b"" if there is none
    has_unique_id: bool


def build_tlvs(common: CommonTlvs, unique_id: bytes, certificate: bytes = b"") -> bytes:
    """The TLVs of one connection.

    `certificate` is the client's, DER, if it is to be sent.
    """
    tlvs, ssl, has_unique_id = common
    if has_unique_id:
        unique_id = unique_id[:UNIQUE_ID_BYTES]
        tlvs = b"%b%c%b" % (tlvs, len(unique_id), unique_id)
    if certificate and _BEFORE_TLVS + len(tlvs) + len(ssl) + len(certificate) + 3 <= LONGEST:
        ssl = _tlv(_SSL, ssl[3:] + _tlv(SslTlv.CLIENT_CERT, certificate))
    return tlvs + ssl


def common_tlvs(send: SendProxy, sni: str, alpn: str, tls: Tls | None) -> CommonTlvs:
    """The TLVs that `send` asks for and that have a value, without the session's own.

    `tls` is None if the relay does not terminate the client's TLS. Otherwise the client
    has shown a certificate, which was verified: in a resumption on an earlier
    connection of the session.
    """
    tlvs, wanted = b"", send.tlvs
    if alpn and "alpn" in wanted:
        tlvs += _tlv(_ALPN, alpn.encode("utf-8", "replace"))
    if sni and "authority" in wanted:
        tlvs += _tlv(_AUTHORITY, sni.encode("utf-8", "replace"))
    unique_id = "unique_id" in wanted
    if unique_id:
        tlvs += bytes((_UNIQUE_ID, 0))  # see `CommonTlvs`
    if tls is None or not (send.certificate or wanted & _SSL_TLVS):
        return CommonTlvs(tlvs, b"", unique_id)
    parts = (
        ("ssl_version", SslTlv.VERSION, tls.version),
        ("ssl_cipher", SslTlv.CIPHER, tls.cipher),
        ("ssl_sig_alg", SslTlv.SIG_ALG, tls.sig_alg),
        ("ssl_key_alg", SslTlv.KEY_ALG, tls.key_alg),
        ("ssl_group", SslTlv.GROUP, tls.group),
        ("ssl_sig_scheme", SslTlv.SIG_SCHEME, tls.sig_scheme),
    )
    ssl = _ssl_start(_RESUMED if tls.resumed else _FULL, 0)
    for name, kind, value in parts:
        if value and name in wanted:
            ssl += _tlv(kind, value.encode("ascii", "replace"))
    if "ssl_cn" in wanted:
        ssl += _common_name(tls.cn)
    return CommonTlvs(tlvs, _tlv(_SSL, ssl), unique_id)


def _common_name(name: str) -> bytes:
    """The TLV of a common name; b"" if a receiver could take it for another name."""
    data = name.encode("utf-8", "replace")
    if not name or len(data) > LONGEST_CN or not name.isprintable():
        return b""
    return _tlv(SslTlv.CN, data)


def _tlv(kind: int, value: bytes) -> bytes:
    return _tlv_start(kind, len(value)) + value


_SSL_TLVS = frozenset(name for name in PROXY_TLVS if name.startswith("ssl"))


# Addresses.


@lru_cache(4096)
def packed(host: str) -> bytes:
    """An IP address as bytes. An IPv4 address that is mapped to IPv6 has four."""
    if ":" not in host:
        return bytes(map(int, host.split(".")))
    data = IPv6Address(host.partition("%")[0]).packed
    return data[12:] if data[:12] == _MAPPED else data


def _sixteen(data: bytes) -> bytes:
    return data if len(data) == 16 else _MAPPED + data


def _dotted(data: bytes) -> str:
    return ".".join(map(str, data))


def _text6(data: bytes) -> str:
    address = IPv6Address(_sixteen(data))
    mapped = address.ipv4_mapped
    return f"::ffff:{mapped}" if mapped is not None else str(address)
