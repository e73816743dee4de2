"""Parses a private key, and compares it with a certificate.

Never: asks for a passphrase, or shows a byte of a key or of a passphrase.
"""

from __future__ import annotations

from OpenSSL import SSL
from OpenSSL.crypto import (
    FILETYPE_ASN1,
    FILETYPE_PEM,
    Error,
    PKey,
    dump_publickey,
    load_privatekey,
)

from relay.tls.certificates.certificate import Certificate
from relay.tls.raw import NULL, ffi, lib


def parse_key(text: bytes, passphrase: bytes = b"") -> PKey:
    """A private key from its PEM block. Raises ValueError with OpenSSL's error text."""
    try:
        # Without a passphrase OpenSSL would ask for one on the terminal.
        return load_privatekey(FILETYPE_PEM, text, passphrase=passphrase)
    except (Error, ValueError) as error:
        texts = [entry[-1] for entry in error.args[0] if entry[-1]] if _is_queue(error) else []
        raise ValueError(
            "; ".join(dict.fromkeys(texts)) or "OpenSSL does not recognize its format"
        ) from None
    finally:
        lib.ERR_clear_error()


def key_matches(certificate: Certificate, key: PKey) -> bool:
    """Whether the certificate was issued for this key."""
    if _public_half(key) == certificate.spki:
        return True
    context = SSL.Context(SSL.TLS_METHOD)
    # Weak certificates are compared too; another finding reports the weakness.
    context.set_cipher_list(b"DEFAULT:@SECLEVEL=0")
    raw = context._context  # noqa: SLF001 (the pointer has no public name)
    try:
        if lib.SSL_CTX_use_certificate(raw, certificate.pointer) != 1:
            return dump_publickey(FILETYPE_ASN1, key) == certificate.spki
        # OpenSSL also accepts the key of another algorithm, because a second
        # certificate may follow. So the key must be compared with the certificate as
        # well.
        return bool(
            lib.SSL_CTX_use_PrivateKey(raw, key._pkey) == 1  # noqa: SLF001
            and lib.SSL_CTX_check_private_key(raw) == 1
        )
    finally:
        lib.ERR_clear_error()


def _public_half(key: PKey) -> bytes:
    """The key's SubjectPublicKeyInfo; b"" if OpenSSL does not tell it."""
    try:
        return dump_publickey(FILETYPE_ASN1, key)
    except (Error, ValueError):
        return b""
    finally:
        lib.ERR_clear_error()


def plain_pem(key: PKey) -> bytes:
    """A private key as PKCS#8 PEM, not encrypted. Raises ValueError."""
    bio = ffi.gc(lib.BIO_new(lib.BIO_s_mem()), lib.BIO_free)
    pkey = key._pkey  # noqa: SLF001 (the pointer has no public name)
    if lib.PEM_write_bio_PrivateKey(bio, pkey, NULL, NULL, 0, NULL, NULL) != 1:
        lib.ERR_clear_error()
        raise ValueError("OpenSSL cannot write it")
    data = ffi.new("char **")
    size = lib.BIO_get_mem_data(bio, data)
    return bytes(ffi.buffer(data[0], size))


def _is_queue(error: Exception) -> bool:
    return bool(error.args) and isinstance(error.args[0], list)
