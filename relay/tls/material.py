"""Builds the TLS contexts of a route or a backend from a certificate and its CAs.

At start and reload the first one is made before the workers are forked. A renewal
builds another one in each process. A function returns an `SSL_CTX *` that frees the
context when it is collected.

Never: changes a context after it was used, because OpenSSL's connections share it.
Next: `relay.tls.stream.accept`
"""

from __future__ import annotations

import hashlib
import ipaddress
from typing import Any

from OpenSSL import SSL

from relay.config.address import is_ip
from relay.config.listener_model import Route
from relay.config.pool_model import Pool
from relay.errors import ConfigError, Problem
from relay.tls.certificates.pem import KeyPair
from relay.tls.context_settings import new_context, use_pair
from relay.tls.raw import (
    NEVER_CHECK_SUBJECT,
    NO_PARTIAL_WILDCARDS,
    NULL,
    Pointer,
    lib,
)
from relay.tls.staple import Staple
from relay.tls.trust import CaTrust
from relay.tls.trust_store import TrustedCas
from relay.tls.verification import (
    NO_TLS12_TICKETS_CALLBACK,
    SERVER_NAME_CALLBACK,
    VERIFY_CALLBACK,
    VERIFY_EITHER_USE,
)

# The lifetime of a ticket. A ticket holds only the client's leaf, so on a resumed
# handshake the relay does not notice that an intermediate from the client has expired.
# This lifetime limits how long that can last, except in TLS 1.3, where a resumption
# issues a new ticket.
TICKET_LIFETIME_S = 300


def route_context(
    where: str,
    route: Route,
    pair: KeyPair,
    cas: TrustedCas,
    trust: CaTrust,
    alpn_callback: Any,
    staple: Staple | None,
    *,
    ciphers_checked: bool,
) -> Pointer:
    """A context that accepts the clients of a route. Raises ConfigError.

    `alpn_callback` is NULL for a route without ALPN. A ticket counts in this context if
    the route and the trust generation were the same when it was issued. The CAs in
    `trust` are those of `cas` that are not revoked.
    """
    context = new_context(SSL.TLS_SERVER_METHOD, where, route, ciphers_checked=ciphers_checked)
    cas.use(context)
    use_pair(context, f"{where}.certificate", pair)
    raw: Pointer = context._context  # noqa: SLF001 (the pointer has no public name)
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
    callback = (
        SERVER_NAME_CALLBACK if _may_resume_tls12(route, trust) else NO_TLS12_TICKETS_CALLBACK
    )
    lib.SSL_CTX_set_tlsext_servername_callback(raw, callback)
    # Tickets only: a session cache in memory would serve only one worker.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_timeout(TICKET_LIFETIME_S)
    if not route.session_tickets:
        context.set_options(SSL.OP_NO_TICKET)
    context.set_session_id(hashlib.sha256(where.encode() + b"\0" + trust.digest).digest())
    verify = VERIFY_EITHER_USE if route.accept_server_certificates else VERIFY_CALLBACK
    lib.SSL_CTX_set_verify(raw, SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
    if route.send_ca_names:
        cas.ask_for(context)
    if alpn_callback != NULL:
        lib.SSL_CTX_set_alpn_select_cb(raw, alpn_callback, NULL)
    if staple is not None:
        staple.use(raw)
    return raw


def _may_resume_tls12(route: Route, trust: CaTrust) -> bool:
    """Whether TLS 1.2 clients get tickets.

    There a ticket is promised before the certificate is seen. With revocation lists, a
    resumption must not skip an intermediate that only the client has sent.
    """
    lists = route.revocation
    if lists is None:
        return True
    return trust.closed and lists.missing == "refuse" and not lists.from_certificates


def backend_context(
    where: str,
    pool: Pool,
    index: int,
    name: str,
    pair: KeyPair,
    cas: TrustedCas,
    *,
    ciphers_checked: bool,
) -> Pointer:
    """A context that connects to one backend and accepts only this name.

    Raises ConfigError.
    """
    context = new_context(SSL.TLS_CLIENT_METHOD, where, pool, ciphers_checked=ciphers_checked)
    cas.use(context)
    use_pair(context, f"{where}.machine_certificate", pair)
    raw: Pointer = context._context  # noqa: SLF001 (the pointer has no public name)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    lib.SSL_CTX_set_verify(raw, SSL.VERIFY_PEER, VERIFY_CALLBACK)
    # A backend may request the certificate later, for some resources (RFC 8446, 4.6.2).
    lib.SSL_CTX_set_post_handshake_auth(raw, 1)
    # One context per backend: the name to verify is set once, and not per connection.
    _set_name_to_verify(raw, f"{where}.backend[{index}].name", name)
    return raw


def _set_name_to_verify(context: Pointer, where: str, name: str) -> None:
    parameters = lib.SSL_CTX_get0_param(context)
    lib.X509_VERIFY_PARAM_set_hostflags(parameters, NO_PARTIAL_WILDCARDS | NEVER_CHECK_SUBJECT)
    if is_ip(name):
        packed = ipaddress.ip_address(name).packed
        done = lib.X509_VERIFY_PARAM_set1_ip(parameters, packed, len(packed))
    else:
        encoded = name.encode("ascii")
        done = lib.X509_VERIFY_PARAM_set1_host(parameters, encoded, len(encoded))
    if done != 1:
        what = f"OpenSSL does not accept {name!r} as the name to verify"
        raise ConfigError([Problem(where, what, "set it to a host name or an IP address")])
