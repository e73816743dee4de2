"""The types of single values in the configuration, and the defaults of TLS settings.

Names and fingerprints are normalised here.

Never: knows a section or a key (see `config.model`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError


def _parse_path(value: object) -> object:
    # An empty string would become Path("."). A pasted PEM would become a file name, and
    # an error message would then show half of a key.
    if not isinstance(value, str):
        return value
    if not value.strip():
        raise PydanticCustomError("bad_path", "is empty; leave the key out, or name a file")
    if "-----BEGIN" in value or not value.strip().isprintable():
        raise PydanticCustomError(
            "bad_path",
            "contains line breaks or control characters; name a file, do not paste its contents",
        )
    return Path(value.strip())


def _lower(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(value.lower() for value in values)


def _bare_hex(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(value.replace(":", "").lower() for value in values)


FilePath = Annotated[Path, BeforeValidator(_parse_path)]
FilePaths = Annotated[tuple[FilePath, ...], Field(strict=False)]
Strings = Annotated[tuple[str, ...], Field(strict=False)]
# DNS names are compared without case (RFC 4343), so they are kept in lower case.
DnsNames = Annotated[Strings, AfterValidator(_lower)]
# Lower-case hexadecimal digits without colons.
Fingerprints = Annotated[Strings, AfterValidator(_bare_hex)]
Seconds = Annotated[float, Field(gt=0, le=31_536_000, allow_inf_nan=False)]
TlsVersion = Literal["TLSv1.2", "TLSv1.3"]

CIPHERS_TLS12 = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"
    ":ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"
    ":ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)
CIPHERSUITES_TLS13 = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
# A client that offers the post-quantum share gets it. This costs the relay 59 µs of CPU
# per full handshake.
INBOUND_GROUPS = "X25519MLKEM768:X25519:P-256:P-384:P-521"
# Offering X25519MLKEM768 to a backend costs 109 µs of CPU per full handshake, even if
# the backend does not take it.
OUTBOUND_GROUPS = "X25519:P-256:P-384:P-521"
