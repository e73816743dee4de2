"""Every TLS context of one configuration, built before the workers are forked.

So every worker has the same session-ticket keys and resumes what another began, and the memory is shared. A context
is never changed afterwards: a reload builds a new generation, and with it new ticket keys, so that no session
of a client that the new configuration refuses can be resumed.

Never: reads a socket; keeps a key anywhere but inside OpenSSL.
Next: `relay.tls.stream.accept`
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from OpenSSL import SSL

from relay.config.address import is_ip, parse_address
from relay.config.model import Backend, Config, Listener, Pool, Route
from relay.config.places import key_place, pool_place
from relay.config.stickiness import alpn_of
from relay.core.routes import RouteTable
from relay.errors import ConfigError, Problem
from relay.tls.alpn import selector
from relay.tls.certificate import Certificate
from relay.tls.ciphers import NEVER, refused_ciphers
from relay.tls.identity import AllowRules, compile_rules
from relay.tls.material import load_authorities, load_key_pair
from relay.tls.offers import VERSIONS
from relay.tls.parsed import openssl_words
from relay.tls.raw import (
    MODE_AUTO_RETRY,
    MODE_NO_AUTO_CHAIN,
    MODE_PARTIAL_WRITE,
    MODE_RELEASE_BUFFERS,
    NEVER_CHECK_SUBJECT,
    NO_PARTIAL_WILDCARDS,
    NULL,
    Pointer,
    lib,
)
from relay.tls.secrets import load_secrets
from relay.tls.stream import SERVER_NAME_CALLBACK, VERIFY_CALLBACK

# IGNORE_UNEXPECTED_EOF: a peer that sends FIN without close_notify keeps its other direction; see relay.tls.pump for how it is told apart.
_OPTIONS = SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_IGNORE_UNEXPECTED_EOF
# How long a ticket is good for. On a resumed handshake an expired intermediate that the client once sent cannot be seen (the
# ticket carries only the leaf), so this bounds the time until it is; except in TLS 1.3, where every resumption gives a new ticket.
TICKET_LIFETIME_S = 300


@dataclass(frozen=True, slots=True, eq=False)
class InboundRoute:
    """One route, ready to accept: its context, and what is judged after the handshake."""

    listener: str
    label: str
    pool: str
    sni: frozenset[str]
    context: Pointer
    negotiates: bool
    rules: AllowRules
    ca_valid_until: dict[bytes, float]
    keep: tuple[Any, ...] = field(repr=False)  # what must live as long as the context: the owner of the pointer, callbacks


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """One backend, ready to connect to: where it is, and a context that accepts only its name."""

    pool: str
    route: str
    address: str
    family: int
    sockaddr: tuple[Any, ...]
    name: str
    server_name: bytes  # the SNI to send, zero-terminated; b"" when the name is an IP address
    context: Pointer
    keep: tuple[Any, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """One loaded configuration with everything made from it."""

    number: int
    config: Config
    routes: dict[str, RouteTable[InboundRoute]]
    targets: dict[str, tuple[Target, ...]]
    secrets: dict[str, bytes] = field(repr=False)  # of the pools that insert cookies


def build_generation(config: Config, number: int) -> Generation:
    """Build every context. Raises ConfigError with all problems: files, cipher lists, names that do not resolve."""
    secrets, problems = load_secrets(config)
    routes: dict[str, RouteTable[InboundRoute]] = {}
    targets: dict[str, tuple[Target, ...]] = {}
    for listener in config.listener:
        entries: list[tuple[tuple[str, ...], InboundRoute]] = []
        for index, route in enumerate(listener.route):
            try:
                entries.append((route.sni, _inbound(listener, index, route, number, alpn_of(config, route))))
            except ConfigError as error:
                problems += error.problems
        routes[listener.name] = RouteTable.build(entries)
    for name, pool in config.pool.items():
        members: list[Target] = []
        for index, backend in enumerate(pool.backend):
            try:
                members.append(_outbound(name, pool, index, backend))
            except ConfigError as error:
                problems += error.problems
        targets[name] = tuple(members)
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    return Generation(number, config, routes, targets, secrets)


def _inbound(listener: Listener, index: int, route: Route, number: int, protocols: tuple[str, ...]) -> InboundRoute:
    where = f"{key_place('listener', listener.name)}.route[{index}]"
    if route.certificate is None or route.private_key is None or route.client_ca is None:
        raise ConfigError([Problem(where, "has no certificate, private_key and client_ca", "set all three")])
    context = _context(SSL.TLS_SERVER_METHOD, where, route)
    authorities = load_authorities(f"{where}.client_ca", route.client_ca)
    _trust(context, where, authorities)
    _use_pair(context, where, route)
    raw = context._context  # noqa: SLF001 (the pointer has no public name)
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
    lib.SSL_CTX_set_tlsext_servername_callback(raw, SERVER_NAME_CALLBACK)
    # Tickets only: a cache in memory would be one worker's, and would be copied at fork.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_timeout(TICKET_LIFETIME_S)
    if not route.session_tickets:
        context.set_options(SSL.OP_NO_TICKET)
    context.set_session_id(hashlib.sha256(f"{number}/{listener.name}/{index}".encode()).digest())
    lib.SSL_CTX_set_verify(raw, SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, VERIFY_CALLBACK)
    for authority in authorities:
        lib.SSL_CTX_add_client_CA(raw, authority.pointer)
    keep: tuple[Any, ...] = (context,)
    if protocols:
        callback = selector(tuple(name.encode("ascii") for name in protocols))
        lib.SSL_CTX_set_alpn_select_cb(raw, callback, NULL)
        keep = (context, callback)
    return InboundRoute(
        listener=listener.name,
        label=route.label,
        pool=route.pool,
        sni=frozenset(route.sni),
        context=raw,
        negotiates=bool(protocols),
        rules=compile_rules(route.allow),
        ca_valid_until=_valid_until(authorities),
        keep=keep,
    )


def _outbound(pool_name: str, pool: Pool, index: int, backend: Backend) -> Target:
    where = pool_place(pool_name)
    if pool.machine_certificate is None or pool.machine_key is None or pool.backend_ca is None:
        raise ConfigError([Problem(where, "has no machine_certificate, machine_key and backend_ca", "set all three")])
    context = _context(SSL.TLS_CLIENT_METHOD, where, pool)
    _trust(context, where, load_authorities(f"{where}.backend_ca", pool.backend_ca))
    _use_pair(context, where, pool)
    raw = context._context  # noqa: SLF001 (the pointer has no public name)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    lib.SSL_CTX_set_verify(raw, SSL.VERIFY_PEER, VERIFY_CALLBACK)
    # A backend may ask for our certificate later, for a part of its site (RFC 8446, 4.6.2).
    lib.SSL_CTX_set_post_handshake_auth(raw, 1)

    host, port = parse_address(backend.address)
    name = backend.name or host
    # One context per backend, so the name to check is set once and not in every connection.
    parameters = lib.SSL_CTX_get0_param(raw)
    lib.X509_VERIFY_PARAM_set_hostflags(parameters, NO_PARTIAL_WILDCARDS | NEVER_CHECK_SUBJECT)
    if is_ip(name):
        packed = ipaddress.ip_address(name).packed
        done = lib.X509_VERIFY_PARAM_set1_ip(parameters, packed, len(packed))
    else:
        encoded = name.encode("ascii")
        done = lib.X509_VERIFY_PARAM_set1_host(parameters, encoded, len(encoded))
    if done != 1:
        raise ConfigError([Problem(f"{where}.backend[{index}].name", f"OpenSSL does not take {name!r} as the name to verify", "write a host name or an IP address")])
    try:
        family, _, _, _, sockaddr = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError([Problem(f"{where}.backend[{index}].address", f"{host} does not resolve: {error.strerror or error}", "correct the name, or write the IP address")]) from None
    return Target(
        pool=pool_name,
        route=backend.route,
        address=backend.address,
        family=family,
        sockaddr=sockaddr,
        name=name,
        server_name=b"" if is_ip(name) else name.encode("ascii") + b"\0",
        context=raw,
        keep=(context,),
    )


def _context(method: int, where: str, settings: Route | Pool) -> SSL.Context:
    if problems := refused_ciphers(where, settings):
        raise ConfigError(problems)
    context = SSL.Context(method)
    raw = context._context  # noqa: SLF001 (the pointer has no public name)
    context.set_options(_OPTIONS)
    context.set_mode(MODE_NO_AUTO_CHAIN | MODE_RELEASE_BUFFERS)
    # pyOpenSSL turns it on. A client that has negotiated shorter records (RFC 6066, 4) would make SSL_write take only the first part
    # of what relay.tls.pump gives it, which counts on all or nothing. And OpenSSL turns on that SSL_read goes on after a record without
    # data: a peer that sends key updates as fast as they are read would keep it from ever returning.
    lib.SSL_CTX_clear_mode(raw, MODE_PARTIAL_WRITE | MODE_AUTO_RETRY)
    context.set_min_proto_version(VERSIONS[settings.min_version])
    # Never negotiated, but every hello would go through the list: one that is short saves 3 µs per connection.
    tls12 = "ECDHE-ECDSA-AES128-GCM-SHA256" if settings.min_version == "TLSv1.3" else settings.ciphers_tls12 + NEVER
    context.set_cipher_list(tls12.encode())
    context.set_tls13_ciphersuites(settings.ciphersuites_tls13.encode())
    if lib.SSL_CTX_set1_curves_list(raw, settings.groups.encode()) != 1:
        lib.ERR_clear_error()
        raise ConfigError([Problem(f"{where}.groups", f"OpenSSL does not take {settings.groups!r}", "names are separated by colons, for example X25519:P-256")])
    return context


def _trust(context: SSL.Context, where: str, authorities: Iterable[Certificate]) -> None:
    store = context.get_cert_store()
    if store is None:
        raise ConfigError([Problem(where, "OpenSSL gave the context no certificate store", "report this as a bug")])
    for authority in authorities:
        lib.X509_STORE_add_cert(store._store, authority.pointer)  # noqa: SLF001


def _use_pair(context: SSL.Context, where: str, settings: Route | Pool) -> None:
    certificate, key, name = (
        (settings.certificate, settings.private_key, "certificate") if isinstance(settings, Route) else (settings.machine_certificate, settings.machine_key, "machine_certificate")
    )
    if certificate is None or key is None:  # the callers have checked
        raise ConfigError([Problem(where, f"has no {name} or no key", "set both")])
    pair = load_key_pair(f"{where}.{name}", certificate, key)
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
        what = f"OpenSSL does not take {certificate}: {openssl_words()}"
        remedy = "use an RSA key of 2048 bits or more, or ECDSA, signed with SHA-256 or better"
        raise ConfigError([Problem(f"{where}.{name}", what, remedy)])


def _send(raw: Pointer, issuer: Certificate) -> bool:
    """Let an intermediate be sent; the context takes over the reference when it takes it."""
    lib.X509_up_ref(issuer.pointer)
    if lib.SSL_CTX_add_extra_chain_cert(raw, issuer.pointer) == 1:
        return True
    lib.X509_free(issuer.pointer)
    return False


def _valid_until(authorities: Iterable[Certificate]) -> dict[bytes, float]:
    """For every CA of a file: until when it and the CAs above it in the file are valid, by the DER of its subject."""
    by_subject: dict[bytes, list[Certificate]] = {}
    for authority in authorities:
        by_subject.setdefault(authority.subject.public_bytes(), []).append(authority)

    def until(subject: bytes, below: frozenset[bytes]) -> float:
        latest = float("-inf")
        for certificate in by_subject[subject]:
            limit = certificate.not_valid_after_utc.timestamp()
            issuer = certificate.issuer.public_bytes()
            if issuer in by_subject and issuer not in below:
                limit = min(limit, until(issuer, below | {issuer}))
            latest = max(latest, limit)  # a CA that was renewed under its old name counts with its newest certificate
        return latest

    return {subject: until(subject, frozenset({subject})) for subject in by_subject}
