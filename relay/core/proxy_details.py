"""What a PROXY header says besides the client's address, for the access log.

The TLVs of vendors are in their documents: AWS (VPC endpoint), Google Cloud (Private
Service Connect), Azure (private endpoint) and Alibaba Cloud (VPC, endpoint, service).

Never: trusts a value: it is shortened, and has printable ASCII only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from relay.core.proxy_header import Header
from relay.core.proxy_tlvs import SslTlv, Tlv

MOST_CHARACTERS: Final = 128
_SUBTYPES: Final = {
    (Tlv.AWS, 1): "aws_vpce_id",
    (Tlv.ALIBABA, 1): "alibaba_vpc_id",
    (Tlv.ALIBABA, 2): "alibaba_endpoint_id",
    (Tlv.ALIBABA, 3): "alibaba_service_id",
}
_AZURE_LINK_ID: Final = 1
_SSL_TEXTS: Final = {SslTlv.VERSION: "ssl_version", SslTlv.CN: "ssl_cn"}
_SSL_FIXED_BYTES: Final = 5  # before its own TLVs: which elements are there, and `verify`

Details = tuple[tuple[str, str], ...]


def details_of(header: Header) -> Details:
    """Names and values, each name once."""
    found: dict[str, str] = {}
    if header.local:
        found["command"] = "local"
    if header.destination is not None:
        host, port = header.destination
        found["destination"] = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    for kind, value in header.tlvs:
        for name, text in _of_tlv(kind, value):
            found.setdefault(name, text)
    return tuple(found.items())


def _of_tlv(kind: int, value: bytes) -> Iterator[tuple[str, str]]:
    if kind == Tlv.AUTHORITY:
        yield "authority", _printable(value)
    elif kind == Tlv.UNIQUE_ID:
        text = value.decode("latin-1")
        is_text = text.isascii() and text.isprintable()
        yield "unique_id", _printable(value) if is_text else value.hex()[:MOST_CHARACTERS]
    elif kind == Tlv.GCP_PSC_CONNECTION_ID and len(value) == 8:
        yield "gcp_psc_connection_id", str(int.from_bytes(value, "big"))
    elif kind == Tlv.AZURE and len(value) == 5 and value[0] == _AZURE_LINK_ID:
        yield "azure_link_id", str(int.from_bytes(value[1:], "little"))
    elif kind in (Tlv.AWS, Tlv.ALIBABA) and (kind, value[0] if value else 0) in _SUBTYPES:
        yield _SUBTYPES[Tlv(kind), value[0]], _printable(value[1:])
    elif kind == Tlv.SSL:
        yield from _of_ssl(value)


def _of_ssl(value: bytes) -> Iterator[tuple[str, str]]:
    at = _SSL_FIXED_BYTES
    while at + 3 <= len(value):
        kind, length = value[at], int.from_bytes(value[at + 1 : at + 3], "big")
        at += 3
        if kind in (SslTlv.VERSION, SslTlv.CN):
            yield _SSL_TEXTS[SslTlv(kind)], _printable(value[at : at + length])
        at += length


def _printable(value: bytes) -> str:
    text = value[:MOST_CHARACTERS].decode("utf-8", "replace")
    return "".join(char if char.isascii() and char.isprintable() else "?" for char in text)
