"""The types of single values in the configuration, and the defaults of TLS settings.

Names and fingerprints are normalised here.

Never: knows a section or a key (see `config.model`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

CREDENTIAL = "credential:"
_LONGEST_CREDENTIAL = 255


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


def _parse_file(value: object) -> object:
    path = _parse_path(value)
    if not str(path).startswith(CREDENTIAL):
        return path
    # systemd has the same rule for these names.
    name = str(path).removeprefix(CREDENTIAL)
    if name in {"", ".", ".."} or {"/", ":"} & {*name} or len(name) > _LONGEST_CREDENTIAL:
        raise PydanticCustomError(
            "bad_path",
            "is not the name of a credential; write a file name without / and : after"
            ' "credential:", for example "credential:server.key"',
        )
    return path


def _parse_own_path(value: object) -> object:
    path = _parse_path(value)
    if str(path).startswith(CREDENTIAL):
        what = "cannot be a credential: the relay writes there; name a path"
        raise PydanticCustomError("bad_path", what)
    return path


def _listed(value: object) -> object:
    return ([value] if value else []) if isinstance(value, str) else value


def _lower(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(value.lower() for value in values)


def _bare_hex(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(value.replace(":", "").lower() for value in values)


# A file that the relay reads: its path, or credential:NAME (see `config.load`).
FilePath = Annotated[Path, BeforeValidator(_parse_file)]
FilePaths = Annotated[tuple[FilePath, ...], Field(strict=False)]
# A file or directory that the relay writes.
OwnPath = Annotated[Path, BeforeValidator(_parse_own_path)]
Strings = Annotated[tuple[str, ...], Field(strict=False)]
# One string, or a list of them; "" is none.
OneOrMore = Annotated[Strings, BeforeValidator(_listed)]
# DNS names are compared without case (RFC 4343), so they are kept in lower case.
DnsNames = Annotated[Strings, AfterValidator(_lower)]
# Lower-case hexadecimal digits without colons.
HexNumbers = Annotated[Strings, AfterValidator(_bare_hex)]
Seconds = Annotated[float, Field(gt=0, le=31_536_000, allow_inf_nan=False)]
TlsVersion = Literal["TLSv1.2", "TLSv1.3"]
# What happens to an open session when the peer's certificate expires.
AtExpiry = Literal["close", "finish"]
Grace = Annotated[float, Field(ge=0, le=31_536_000, allow_inf_nan=False)]

# The most CAs in a verified chain. For each issuer, OpenSSL searches all certificates
# from the peer. Without this limit 100 certificates in reverse order cost 7.7 ms of
# CPU, with it 2 ms. Usual chains have at most 4 certificates.
MAX_CAS = 10
ChainDepth = Annotated[int, Field(ge=1, le=MAX_CAS)]

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
