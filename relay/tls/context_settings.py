"""Settings that all TLS contexts have: versions, ciphers, options, certificate, key.

Never: decides which CAs a context trusts (that is `tls.trust_store`).
"""

from __future__ import annotations

from OpenSSL import SSL

from relay.config.listener_model import Route
from relay.config.pool_model import Pool
from relay.errors import ConfigError, Problem
from relay.tls.certificates.certificate import Certificate
from relay.tls.certificates.pem import KeyPair
from relay.tls.certificates.x509_fields import openssl_error_text
from relay.tls.cipher_offers import VERSIONS
from relay.tls.ciphers import ALWAYS_EXCLUDED, GROUPS_REMEDY, refused_ciphers
from relay.tls.raw import (
    MODE_AUTO_RETRY,
    MODE_NO_AUTO_CHAIN,
    MODE_PARTIAL_WRITE,
    MODE_RELEASE_BUFFERS,
    Pointer,
    lib,
)

# IGNORE_UNEXPECTED_EOF: a peer that sends FIN without close_notify keeps its other
# direction. relay.tls.pump tells the two kinds of end apart.
_OPTIONS = SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_IGNORE_UNEXPECTED_EOF


def new_context(
    method: int, where: str, settings: Route | Pool, *, ciphers_checked: bool
) -> SSL.Context:
    """A context with the settings of a route or pool. Raises ConfigError.

    `ciphers_checked`: skip the check of its ciphers, which was done before.
    """
    if not ciphers_checked and (problems := refused_ciphers(where, settings)):
        raise ConfigError(problems)
    context = SSL.Context(method)
    raw = context._context  # noqa: SLF001 (the pointer has no public name)
    context.set_options(_OPTIONS)
    context.set_mode(MODE_NO_AUTO_CHAIN | MODE_RELEASE_BUFFERS)
    # pyOpenSSL enables partial writes: for a client that negotiated shorter records
    # (RFC 6066, 4) SSL_write would write only a part, but relay.tls.pump expects all or
    # nothing. OpenSSL enables auto-retry: SSL_read goes on after a record without data,
    # so a peer that sends key updates fast enough would keep it from returning.
    lib.SSL_CTX_clear_mode(raw, MODE_PARTIAL_WRITE | MODE_AUTO_RETRY)
    # OpenSSL does not count the trusted CA at the end of the chain.
    lib.SSL_CTX_set_verify_depth(raw, settings.max_chain_depth - 1)
    context.set_min_proto_version(VERSIONS[settings.min_version])
    context.set_max_proto_version(VERSIONS[settings.max_version])
    # TLS 1.2 suites are never negotiated here, but OpenSSL walks the list for every
    # hello: a short list saves 3 µs per connection.
    tls12 = (
        "ECDHE-ECDSA-AES128-GCM-SHA256"
        if settings.min_version == "TLSv1.3"
        else settings.ciphers_tls12 + ALWAYS_EXCLUDED
    )
    context.set_cipher_list(tls12.encode())
    context.set_tls13_ciphersuites(settings.ciphersuites_tls13.encode())
    if lib.SSL_CTX_set1_curves_list(raw, settings.groups.encode()) != 1:
        lib.ERR_clear_error()
        what = f"OpenSSL does not accept {settings.groups!r}"
        raise ConfigError([Problem(f"{where}.groups", what, GROUPS_REMEDY)])
    return context


def use_pair(context: SSL.Context, where: str, pair: KeyPair) -> None:
    """Present a certificate. Raises ConfigError for the configuration key `where`."""
    raw = context._context  # noqa: SLF001 (the pointer has no public name)
    key = pair.key._pkey if pair.key is not None else None  # noqa: SLF001
    lib.ERR_clear_error()
    accepted = (
        lib.SSL_CTX_use_certificate(raw, pair.leaf.pointer) == 1
        and (key is None or lib.SSL_CTX_use_PrivateKey(raw, key) == 1)
        # A root is not sent: the peer has it or does not trust it, and its bytes would
        # cost every handshake.
        and all(
            _add_intermediate(raw, issuer)
            for issuer in pair.chain[1:]
            if issuer.issuer != issuer.subject
        )
        and (pair.key is None or lib.SSL_CTX_check_private_key(raw) == 1)
    )
    if not accepted:
        what = f"OpenSSL does not accept {pair.file}: {openssl_error_text()}"
        remedy = "use an RSA key of 2048 bits or more, or ECDSA, signed with SHA-256 or better"
        raise ConfigError([Problem(where, what, remedy)])


def _add_intermediate(raw: Pointer, issuer: Certificate) -> bool:
    """Let the context send an intermediate; it then owns a reference to it."""
    lib.X509_up_ref(issuer.pointer)
    if lib.SSL_CTX_add_extra_chain_cert(raw, issuer.pointer) == 1:
        return True
    lib.X509_free(issuer.pointer)
    return False
