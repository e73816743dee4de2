"""Asks OpenSSL which suites a cipher list enables, and what a client would offer.

Never: decides whether the result is acceptable (that is `tls.ciphers`), or talks to a
peer.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from OpenSSL import SSL
from OpenSSL.crypto import X509

from relay.tls.raw import NULL, Pointer, ffi, lib

VERSIONS = {"TLSv1.2": SSL.TLS1_2_VERSION, "TLSv1.3": SSL.TLS1_3_VERSION}
_SUPPORTED_GROUPS = 10
# The first bytes of all suites' numbers: those that IANA has given, and 0xFE and 0xFF
# for private use, as some suites had before. All 65,536 numbers would take 40 ms.
_ASSIGNED = (0x00, 0x13, 0x56, 0xC0, 0xC1, 0xCC, 0xD0, 0xFE, 0xFF)


@dataclass(frozen=True, slots=True)
class Suite:
    """One cipher suite by OpenSSL's name; `bits` is 0 if it does not encrypt."""

    name: str
    bits: int
    tls13: bool


@dataclass(frozen=True, slots=True)
class Offer:
    """What OpenSSL would offer; `failure` says why it cannot offer anything."""

    suites: tuple[Suite, ...] = ()
    groups: tuple[int, ...] = ()
    failure: str = ""


def make_context(
    version: str, tls12: str, tls13: str, groups: str, *, newest: str = "TLSv1.3"
) -> SSL.Context | None:
    """A context with these settings; None if OpenSSL does not accept them."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    raw = context._context  # noqa: SLF001 (the pointer has no public name)
    context.set_min_proto_version(VERSIONS[version])
    context.set_max_proto_version(VERSIONS[newest])
    accepted = (
        (not tls12 or lib.SSL_CTX_set_cipher_list(raw, tls12.encode()) == 1)
        and (not tls13 or lib.SSL_CTX_set_ciphersuites(raw, tls13.encode()) == 1)
        and (not groups or lib.SSL_CTX_set1_curves_list(raw, groups.encode()) == 1)
    )
    lib.ERR_clear_error()
    return context if accepted else None


def suites_named(tls12: str, tls13: str) -> list[Suite]:
    """The suites that one list names, whatever its security level is."""
    context = make_context("TLSv1.2", tls12, tls13, "")
    if context is None:
        return []
    names = SSL.Connection(context, None).get_cipher_list()
    return [
        suite for name in names if (suite := _by_name().get(name)) and suite.tls13 is bool(tls13)
    ]


def offer_of(context: SSL.Context) -> Offer:
    """The suites and groups in the ClientHello of this context (RFC 8446, 4.1.2)."""
    client = SSL.Connection(context, None)
    client.set_connect_state()
    try:
        client.do_handshake()
    except SSL.WantReadError:
        pass
    except SSL.Error as error:
        return Offer(
            failure="; ".join(entry[-1] for entry in error.args[0]) if error.args else "refused"
        )
    # Record header 5, message header 4, version 2, random 32.
    hello = client.bio_read(65_536)[43:]
    _, hello = _cut(hello, 1)  # session id
    ids, hello = _cut(hello, 2)
    _, hello = _cut(hello, 1)  # compression methods
    extensions, _ = _cut(hello, 2)
    groups: tuple[int, ...] = ()
    while extensions:
        kind, (body, extensions) = int.from_bytes(extensions[:2], "big"), _cut(extensions[2:], 2)
        if kind == _SUPPORTED_GROUPS:
            groups = _numbers(_cut(body, 2)[0])
    ssl = client._ssl  # noqa: SLF001
    found = [_find(ssl, number) for number in _numbers(ids)]
    lib.ERR_clear_error()
    return Offer(tuple(suite for suite in found if suite is not None), groups)


def _cut(data: bytes, width: int) -> tuple[bytes, bytes]:
    """A vector with a length of `width` bytes before it, and what follows it."""
    end = width + int.from_bytes(data[:width], "big")
    return data[width:end], data[end:]


def _numbers(data: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))


def level_of(context: SSL.Context) -> int:
    """The context's security level: 0, 1, or 2 for 2 and above.

    The bindings have no call for it, so the level is found by what it allows.
    """
    raw = context._context  # noqa: SLF001
    accepted = lib.SSL_CTX_use_certificate(raw, _weak_certificate()._x509)  # noqa: SLF001
    lib.ERR_clear_error()
    if accepted != 1:
        return 2
    # A list without @SECLEVEL does not change the level.
    lib.SSL_CTX_set_cipher_list(raw, b"ALL:eNULL")
    return 0 if any(suite.bits == 0 for suite in offer_of(context).suites) else 1


@lru_cache
def _weak_certificate() -> X509:
    """A certificate with RSA 1024: security level 1 accepts it and level 2 does not."""
    public = rsa.RSAPublicNumbers(65_537, (1 << 1023) | 1).public_key()
    # An OPENSSL_CONF for a TPM may send ECDSA and RSA signatures there, but not these.
    signer = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([])
    begin = datetime(2000, 1, 1, tzinfo=UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(1)
    )
    return X509.from_cryptography(
        builder.not_valid_before(begin).not_valid_after(begin).sign(signer, None)
    )


def _find(ssl: Pointer, number: int) -> Suite | None:
    """The cipher suite with this number, if OpenSSL has it."""
    cipher = lib.SSL_CIPHER_find(ssl, number.to_bytes(2, "big"))
    if cipher == NULL:
        return None
    version = ffi.string(lib.SSL_CIPHER_get_version(cipher))
    if version == b"unknown":  # signals such as TLS_FALLBACK_SCSV also have numbers
        return None
    name = ffi.string(lib.SSL_CIPHER_get_name(cipher)).decode("ascii", "replace")
    return Suite(name, lib.SSL_CIPHER_get_bits(cipher, NULL), version == b"TLSv1.3")


@lru_cache
def _by_name() -> dict[str, Suite]:
    """Every cipher suite of this OpenSSL, by its name."""
    ssl = lib.SSL_new(SSL.Context(SSL.TLS_METHOD)._context)  # noqa: SLF001
    try:
        numbers = (high << 8 | low for high in _ASSIGNED for low in range(0x100))
        found = [suite for number in numbers if (suite := _find(ssl, number))]
    finally:
        lib.SSL_free(ssl)
        lib.ERR_clear_error()
    return {suite.name: suite for suite in found}
