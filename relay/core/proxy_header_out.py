"""Builds the PROXY header that tells a backend who the client is, versions 1 and 2.

The format: HAProxy's doc/proxy-protocol.txt of 2026-04-27. `core.proxy_protocol` parses
the other direction.

A header is built for each connection to a backend, so what many connections have in
common (the names of a cipher, a key) is encoded once and kept.

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
_LOCAL, _PROXY = b"\x20", b"\x21"
_UNSPEC, _TCP4, _TCP6 = b"\x00", b"\x11", b"\x21"
_MAPPED = b"\0" * 10 + b"\xff\xff"

# As numbers: each look-up of an Enum's member takes 0.06 µs.
_ALPN, _AUTHORITY, _UNIQUE_ID, _SSL = map(int, (Tlv.ALPN, Tlv.AUTHORITY, Tlv.UNIQUE_ID, Tlv.SSL))
_RESUMED = int(SslClient.SSL | SslClient.CERT_SESS)
_FULL = int(_RESUMED | SslClient.CERT_CONN)
_ssl_start = Struct(">BHBI").pack
_tlv_start = Struct(">BH").pack
_ports = Struct(">HH").pack

# Headers of a connection that the relay makes for itself: UNKNOWN in version 1, LOCAL
# in version 2 (2.1 and 2.2 of the specification).
OWN_V1: Final = b"PROXY UNKNOWN\r\n"
OWN_V2: Final = _SIGNATURE + _LOCAL + _UNSPEC + b"\0\0"


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
    """What the TLS handshake with the client agreed on, and its certificate.

    `key_alg` and `sig_alg` are of our certificate. `sig_scheme` is "" if we signed
    nothing: in a resumption. `certificate` is the client's, DER; b"" not to send it.
    """

    version: str
    cipher: str
    group: str
    resumed: bool
    cn: str
    key_alg: str
    sig_alg: str
    sig_scheme: str
    certificate: bytes = b""


def build_v1(addresses: Addresses | None) -> bytes:
    """A header of version 1; UNKNOWN if the addresses are not known."""
    if addresses is None:
        return OWN_V1
    source, source_port, destination, destination_port = addresses
    start, end = packed(source), packed(destination)
    if len(start) == 4 and len(end) == 4:
        family, source, destination = "TCP4", _dotted(start), _dotted(end)
    else:
        family, source, destination = "TCP6", _text6(start), _text6(end)
    line = f"PROXY {family} {source} {destination} {source_port} {destination_port}\r\n"
    return line.encode("ascii")


def build_v2(addresses: Addresses | None, tlvs: bytes) -> bytes:
    """A header of version 2, for a client.

    Without addresses it is still a PROXY header, so that receivers read its TLVs.
    """
    if addresses is None:
        where, family = b"", _UNSPEC
    else:
        source, source_port, destination, destination_port = addresses
        start, end = packed(source), packed(destination)
        family = _TCP4
        if len(start) != 4 or len(end) != 4:
            start, end, family = _sixteen(start), _sixteen(end), _TCP6
        where = start + end + _ports(source_port, destination_port)
    rest = where + tlvs
    return _SIGNATURE + _PROXY + family + len(rest).to_bytes(2, "big") + rest


def build_tlvs(send: SendProxy, sni: str, alpn: str, unique_id: str, tls: Tls | None) -> bytes:
    """The TLVs that `send` asks for and that have a value.

    `tls` is None if the relay does not terminate the client's TLS.
    """
    wanted = send.tlvs
    tlvs = b""
    if alpn and "alpn" in wanted:
        tlvs += _named(_ALPN, alpn)
    if sni and "authority" in wanted:
        tlvs += _named(_AUTHORITY, sni)
    if "unique_id" in wanted:
        tlvs += _tlv(_UNIQUE_ID, unique_id.encode("utf-8")[:UNIQUE_ID_BYTES])
    if tls is not None and (send.certificate or not _SSL_TLVS.isdisjoint(wanted)):
        tlvs += _ssl(wanted, tls, LONGEST - 16 - 36 - len(tlvs))
    return tlvs


def _ssl(wanted: frozenset[str], tls: Tls, room: int) -> bytes:
    """The SSL TLV. Every client has shown a certificate, which was verified.

    In a resumption it was shown on an earlier connection of the session.
    """
    inner = _agreed(
        wanted, tls.version, tls.cipher, tls.key_alg, tls.sig_alg, tls.group, tls.sig_scheme
    )
    if "ssl_cn" in wanted:
        inner += _common_name(tls.cn)
    if tls.certificate and len(inner) + len(tls.certificate) + 11 <= room:
        inner += _tlv(SslTlv.CLIENT_CERT, tls.certificate)
    return _ssl_start(_SSL, 5 + len(inner), _RESUMED if tls.resumed else _FULL, 0) + inner


@lru_cache(1024)
def _agreed(
    wanted: frozenset[str],
    version: str,
    cipher: str,
    key_alg: str,
    sig_alg: str,
    group: str,
    sig_scheme: str,
) -> bytes:
    """The parts of the SSL TLV that many connections have in common."""
    parts = (
        ("ssl_version", SslTlv.VERSION, version),
        ("ssl_cipher", SslTlv.CIPHER, cipher),
        ("ssl_sig_alg", SslTlv.SIG_ALG, sig_alg),
        ("ssl_key_alg", SslTlv.KEY_ALG, key_alg),
        ("ssl_group", SslTlv.GROUP, group),
        ("ssl_sig_scheme", SslTlv.SIG_SCHEME, sig_scheme),
    )
    return b"".join(
        _tlv(kind, value.encode("ascii", "replace"))
        for name, kind, value in parts
        if value and name in wanted
    )


@lru_cache(1024)
def _common_name(name: str) -> bytes:
    """The TLV of a common name; b"" if a receiver could take it for another name."""
    data = name.encode("utf-8", "replace")
    if not name or len(data) > LONGEST_CN or not name.isprintable():
        return b""
    return _tlv(SslTlv.CN, data)


@lru_cache(1024)
def _named(kind: int, name: str) -> bytes:
    return _tlv(kind, name.encode("utf-8", "replace"))


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
