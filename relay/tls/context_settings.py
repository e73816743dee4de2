"""What every context of ours has, whatever it is for: versions, ciphers, options, and a certificate with its key.

Never: decides whom a context trusts (that is `tls.trust_store`).
"""

from __future__ import annotations

from OpenSSL import SSL

from relay.config.model import Pool, Route
from relay.errors import ConfigError, Problem
from relay.tls.certificates.certificate import Certificate
from relay.tls.certificates.pem import KeyPair
from relay.tls.certificates.x509_fields import openssl_error_text
from relay.tls.cipher_offers import VERSIONS
from relay.tls.ciphers import NEVER, refused_ciphers
from relay.tls.raw import (
    MODE_AUTO_RETRY,
    MODE_NO_AUTO_CHAIN,
    MODE_PARTIAL_WRITE,
    MODE_RELEASE_BUFFERS,
    Pointer,
    lib,
)

# IGNORE_UNEXPECTED_EOF: a peer that sends FIN without close_notify keeps its other direction; see
# relay.tls.pump for how it is told apart.
_OPTIONS = SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_IGNORE_UNEXPECTED_EOF

# OpenSSL looks for each issuer among all certificates that the peer has sent. Without this bound
# 100 of them in turned order cost 7.7 ms of CPU; with it 2 ms. Chains of today have up to 4.
MAX_CAS = 10


def new_context(
    method: int, where: str, settings: Route | Pool, *, ciphers_checked: bool
) -> SSL.Context:
    """A context with the settings of a route or pool. `ciphers_checked`: its ciphers need not be looked at again. Raises ConfigError."""
    if not ciphers_checked and (problems := refused_ciphers(where, settings)):
        raise ConfigError(problems)
    context = SSL.Context(method)
    raw = context._context  # noqa: SLF001 (the pointer has no public name)
    context.set_options(_OPTIONS)
    context.set_mode(MODE_NO_AUTO_CHAIN | MODE_RELEASE_BUFFERS)
    # pyOpenSSL turns it on. A client that has negotiated shorter records (RFC 6066, 4) would make SSL_write take only the first part
    # of what relay.tls.pump gives it, which counts on all or nothing. And OpenSSL turns on that SSL_read goes on after a record without
    # data: a peer that sends key updates as fast as they are read would keep it from ever returning.
    lib.SSL_CTX_clear_mode(raw, MODE_PARTIAL_WRITE | MODE_AUTO_RETRY)
    lib.SSL_CTX_set_verify_depth(raw, MAX_CAS)
    context.set_min_proto_version(VERSIONS[settings.min_version])
    # Never negotiated, but every hello would go through the list: one that is short saves 3 µs per connection.
    tls12 = (
        "ECDHE-ECDSA-AES128-GCM-SHA256"
        if settings.min_version == "TLSv1.3"
        else settings.ciphers_tls12 + NEVER
    )
    context.set_cipher_list(tls12.encode())
    context.set_tls13_ciphersuites(settings.ciphersuites_tls13.encode())
    if lib.SSL_CTX_set1_curves_list(raw, settings.groups.encode()) != 1:
        lib.ERR_clear_error()
        raise ConfigError(
            [
                Problem(
                    f"{where}.groups",
                    f"OpenSSL does not take {settings.groups!r}",
                    "names are separated by colons, for example X25519:P-256",
                )
            ]
        )
    return context


def use_pair(context: SSL.Context, where: str, pair: KeyPair) -> None:
    """Show a certificate. `where` names the key of the configuration. Raises ConfigError."""
    raw = context._context  # noqa: SLF001 (the pointer has no public name)
    lib.ERR_clear_error()
    taken = (
        lib.SSL_CTX_use_certificate(raw, pair.leaf.pointer) == 1
        and lib.SSL_CTX_use_PrivateKey(raw, pair.key._pkey) == 1  # noqa: SLF001
        # A root need not be sent: the peer has it or does not trust it, and its bytes cost every handshake.
        and all(_send(raw, issuer) for issuer in pair.chain[1:] if issuer.issuer != issuer.subject)
        and lib.SSL_CTX_check_private_key(raw) == 1
    )
    if not taken:
        what = f"OpenSSL does not take {pair.file}: {openssl_error_text()}"
        remedy = "use an RSA key of 2048 bits or more, or ECDSA, signed with SHA-256 or better"
        raise ConfigError([Problem(where, what, remedy)])


def _send(raw: Pointer, issuer: Certificate) -> bool:
    """Let an intermediate be sent; the context takes over the reference when it takes it."""
    lib.X509_up_ref(issuer.pointer)
    if lib.SSL_CTX_add_extra_chain_cert(raw, issuer.pointer) == 1:
        return True
    lib.X509_free(issuer.pointer)
    return False
