"""Reads the fields of an `X509 *`: a certificate that OpenSSL parsed.

The fields are read from the DER that OpenSSL returns (`tls.certificates.der`). If that
reader fails, they come from OpenSSL's accessors, without the extensions.

Never: keeps a pointer, or leaves anything in the error queue.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from relay.core.untrusted import clip
from relay.tls.certificates.der import DerError, Fields, read_certificate
from relay.tls.certificates.names import decode
from relay.tls.raw import NULL, Pointer, ffi, lib

_COMMON_NAME = lib.OBJ_txt2nid(b"CN")
_MAX_CN_BYTES = 256
# x509_vfy.h: X509_V_FLAG_NO_CHECK_TIME, and X509_V_ERR_INVALID_PURPOSE.
_STRICT_ALONE = lib.X509_V_FLAG_X509_STRICT | lib.X509_V_FLAG_PARTIAL_CHAIN | 0x200000
_INVALID_PURPOSE = 26


def to_der(pointer: Pointer) -> bytes:
    """The DER of an `X509 *`."""
    return _written(lambda bio: lib.i2d_X509_bio(bio, pointer))


def fields_of(pointer: Pointer, der: bytes) -> Fields:
    """The fields of an `X509 *` whose DER is given."""
    try:
        return read_certificate(der)
    except DerError:
        return _fields_from_openssl(pointer)


def common_name(pointer: Pointer) -> str:
    """The first common name of an `X509 *`, clipped. Nothing else in it is parsed."""
    subject = lib.X509_get_subject_name(pointer)
    at = lib.X509_NAME_get_index_by_NID(subject, _COMMON_NAME, -1)
    if at < 0:
        return ""
    value = lib.X509_NAME_ENTRY_get_data(lib.X509_NAME_get_entry(subject, at))
    size = lib.ASN1_STRING_length(value)
    raw = bytes(ffi.buffer(lib.ASN1_STRING_get0_data(value), min(size, _MAX_CN_BYTES)))
    text = decode(lib.ASN1_STRING_type(value), raw)
    if text is None:  # for example, the limit cut a character in two
        text = raw.decode("latin-1")
    return clip(text + ("…" if size > len(raw) else ""), _MAX_CN_BYTES)


def key_bits(pointer: Pointer) -> int:
    """The key size of an `X509 *` in bits; 0 if OpenSSL cannot read the key."""
    key = lib.X509_get_pubkey(pointer)
    if key == NULL:
        lib.ERR_clear_error()
        return 0
    bits: int = lib.EVP_PKEY_bits(key)
    lib.EVP_PKEY_free(key)
    return bits


def has_broken_extensions(pointer: Pointer) -> bool:
    """Whether OpenSSL refuses an `X509 *` for a repeated or malformed extension.

    In a handshake OpenSSL then looks for another issuer and reports a missing one.
    Strict verification of the certificate alone, for any purpose, fails only for this
    reason.
    """
    store, context = lib.X509_STORE_new(), lib.X509_STORE_CTX_new()
    try:
        lib.X509_STORE_add_cert(store, pointer)
        lib.X509_STORE_set_flags(store, _STRICT_ALONE)
        lib.X509_STORE_set_purpose(store, lib.X509_PURPOSE_ANY)
        lib.X509_STORE_CTX_init(context, store, pointer, NULL)
        lib.X509_verify_cert(context)
        return bool(lib.X509_STORE_CTX_get_error(context) == _INVALID_PURPOSE)
    finally:
        lib.X509_STORE_CTX_free(context)
        lib.X509_STORE_free(store)
        lib.ERR_clear_error()


def openssl_error_text() -> str:
    """The errors in OpenSSL's queue as one line. Empties the queue."""
    texts: list[str] = []
    while code := lib.ERR_get_error():
        text = lib.ERR_reason_error_string(code)
        if text != NULL and len(texts) < 3:
            texts.append(ffi.string(text).decode("ascii", "replace"))
    return "; ".join(dict.fromkeys(texts)) or "OpenSSL gave no reason"


def _written(write: Callable[[Any], object]) -> bytes:
    bio = lib.BIO_new(lib.BIO_s_mem())
    try:
        write(bio)
        data = ffi.new("char **")
        length = lib.BIO_get_mem_data(bio, data)
        return bytes(ffi.buffer(data[0], length)) if length > 0 else b""
    finally:
        lib.BIO_free(bio)


def _fields_from_openssl(pointer: Pointer) -> Fields:
    key = lib.X509_get_pubkey(pointer)
    spki = b""
    if key != NULL:
        spki = _written(lambda bio: lib.i2d_PUBKEY_bio(bio, key))
        lib.EVP_PKEY_free(key)
    lib.ERR_clear_error()
    return Fields(
        lib.X509_get_version(pointer) + 1,
        _string(lib.X509_get_serialNumber(pointer)),
        b"",
        _name_der(lib.X509_get_issuer_name(pointer)),
        _time(lib.X509_getm_notBefore(pointer)),
        _time(lib.X509_getm_notAfter(pointer)),
        _name_der(lib.X509_get_subject_name(pointer)),
        spki,
        None,
    )


def _string(value: Pointer) -> bytes:
    size = lib.ASN1_STRING_length(ffi.cast("ASN1_STRING *", value))
    data = lib.ASN1_STRING_get0_data(ffi.cast("ASN1_STRING *", value))
    return bytes(ffi.buffer(data, size)) if size > 0 else b""


def _time(value: Pointer) -> tuple[int, bytes]:
    return lib.ASN1_STRING_type(ffi.cast("ASN1_STRING *", value)), _string(value)


def _name_der(name: Pointer) -> bytes:
    out = ffi.new("unsigned char **")
    size = lib.i2d_X509_NAME(name, out)
    if size <= 0:
        return b""
    data = bytes(ffi.buffer(out[0], size))
    lib.OPENSSL_free(out[0])
    return data
