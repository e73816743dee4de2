"""Builds every TLS context of one configuration, before the workers are forked.

So all workers have the same session-ticket keys, resume each other's sessions, and
share the memory of the contexts. A context is never changed afterwards. A reload builds
a new generation with new ticket keys, so no client that the new configuration refuses
can resume a session.

Never: reads a socket; keeps a key anywhere but inside OpenSSL.
Next: `relay.tls.stream.accept`
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from OpenSSL import SSL

from relay.config.address import is_ip, parse_address
from relay.config.key_path import key_path, pool_path
from relay.config.model import Backend, Config, Listener, Pool, Route
from relay.config.rules.stickiness import alpn_of
from relay.core.routes import RouteTable
from relay.errors import ConfigError, Problem
from relay.shared.addresses import Ip
from relay.tls.alpn import selector
from relay.tls.certificates.pem import KeyPair, load_key_pair, read_certificates
from relay.tls.certificates.validity_periods import ValidityPeriods
from relay.tls.context_inputs import ContextInputs, endpoint_of, periods_of_pool
from relay.tls.context_settings import new_context, use_pair
from relay.tls.cookie_secret import load_secrets
from relay.tls.identity import AllowRules, compile_rules
from relay.tls.raw import (
    NEVER_CHECK_SUBJECT,
    NO_PARTIAL_WILDCARDS,
    NULL,
    Pointer,
    lib,
)
from relay.tls.trust_store import TrustedCas
from relay.tls.verification import SERVER_NAME_CALLBACK, VERIFY_CALLBACK

# The lifetime of a ticket. A ticket holds only the client's leaf, so on a resumed
# handshake the relay does not notice that an intermediate from the client has expired.
# This lifetime limits how long that can last, except in TLS 1.3, where a resumption
# issues a new ticket.
TICKET_LIFETIME_S = 300


@dataclass(frozen=True, slots=True, eq=False)
class InboundRoute:
    """One route, ready to accept: its context, and what `identity.admit` needs."""

    label: str
    pool: str
    context: Pointer
    negotiates_alpn: bool
    rules: AllowRules
    ca_valid_until: dict[bytes, float]
    periods: ValidityPeriods  # of its own certificate and CAs
    pool_periods: ValidityPeriods
    valid_from_at: float  # outside these two times (Unix time) it is disabled
    valid_until_at: float
    keep: tuple[Any, ...] = field(repr=False)
    """What must live as long as the context: the owner of the pointer, callbacks."""


@dataclass(frozen=True, slots=True, eq=False)
class BackendTarget:
    """One backend, ready to connect to. Its context accepts only its own name."""

    pool: str
    route: str
    address: str
    family: int
    sockaddr: tuple[Any, ...]  # () if the host name has no address
    name: str
    server_name: bytes  # the SNI to send, zero-terminated; b"" for an IP address
    context: Pointer
    keep: tuple[Any, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """One loaded configuration with everything built from it."""

    number: int
    config: Config
    routes: dict[str, RouteTable[InboundRoute]]
    targets: dict[str, tuple[BackendTarget, ...]]
    secrets: dict[str, bytes] = field(repr=False)  # of the pools that insert cookies
    addresses: dict[str, tuple[Ip, ...]] = field(default_factory=dict)  # of backends' host names


def free_steps(generation: Generation) -> Iterator[None]:
    """Free a generation's contexts in steps.

    Freeing 500 at once would block the supervisor for 0.1 s.
    """
    kept: list[object] = [one for table in generation.routes.values() for one in table.routes()]
    kept += [one for several in generation.targets.values() for one in several]
    generation.routes.clear()
    generation.targets.clear()
    while kept:
        kept.pop()
        yield


def build_generation(
    config: Config, number: int, context_inputs: ContextInputs | None = None
) -> Generation:
    """Build every context.

    Raises ConfigError with all problems: files, cipher lists, names to verify.
    """
    steps = build_steps(config, number, context_inputs or ContextInputs())
    while True:
        try:
            next(steps)
        except StopIteration as done:
            generation: Generation = done.value
            return generation


def build_steps(
    config: Config, number: int, context_inputs: ContextInputs
) -> Generator[None, None, Generation]:
    """Like `build_generation`, but yields after every few milliseconds of work."""
    cache = _FileCache(context_inputs)
    secrets, problems = load_secrets(config, context_inputs.files)
    routes: dict[str, RouteTable[InboundRoute]] = {}
    targets: dict[str, tuple[BackendTarget, ...]] = {}
    for listener in config.listener:
        entries: list[tuple[tuple[str, ...], InboundRoute]] = []
        for index, route in enumerate(listener.route):
            try:
                made = yield from _inbound(
                    cache, listener, index, route, number, alpn_of(config, route)
                )
            except ConfigError as error:
                problems += error.problems
            else:
                entries.append((route.sni, made))
            yield
        routes[listener.name] = RouteTable.build(entries)
    for name, pool in config.pool.items():
        members: list[BackendTarget] = []
        for index, backend in enumerate(pool.backend):
            try:
                members.append((yield from _outbound(cache, name, pool, index, backend)))
            except ConfigError as error:
                problems += error.problems
            yield
        targets[name] = tuple(members)
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    return Generation(number, config, routes, targets, secrets, dict(context_inputs.addresses))


class _FileCache:
    """Parses each file once, for all routes and pools that use it."""

    def __init__(self, context_inputs: ContextInputs) -> None:
        self.context_inputs = context_inputs
        self._pairs: dict[tuple[Path, Path], KeyPair] = {}
        self._cas: dict[Path, TrustedCas] = {}

    def pair(self, where: str, certificate: Path, key: Path) -> KeyPair:
        """A certificate and its key. Raises ConfigError."""
        if (certificate, key) not in self._pairs:
            self._pairs[certificate, key] = load_key_pair(
                where, certificate, key, self.context_inputs.files
            )
        return self._pairs[certificate, key]

    def cas(self, where: str, file: Path) -> Generator[None, None, TrustedCas]:
        """The CAs of a file. Raises ConfigError."""
        found = self._cas.get(file)
        if found is None:
            problems: list[Problem] = []
            found = TrustedCas()
            yield from found.fill(
                read_certificates(where, file, problems, self.context_inputs.files)
            )
            if problems:
                raise ConfigError(problems)
            self._cas[file] = found
        return found


def _inbound(
    cache: _FileCache,
    listener: Listener,
    index: int,
    route: Route,
    number: int,
    protocols: tuple[str, ...],
) -> Generator[None, None, InboundRoute]:
    where = f"{key_path('listener', listener.name)}.route[{index}]"
    if route.certificate is None or route.private_key is None or route.client_ca is None:
        what = "needs certificate, private_key and client_ca"
        raise ConfigError([Problem(where, what, "set all three")])
    context = new_context(
        SSL.TLS_SERVER_METHOD, where, route, ciphers_checked=cache.context_inputs.ciphers_checked
    )
    cas = yield from cache.cas(f"{where}.client_ca", route.client_ca)
    cas.use(context)
    key = f"{where}.certificate"
    use_pair(context, key, cache.pair(key, route.certificate, route.private_key))
    raw = context._context  # noqa: SLF001 (the pointer has no public name)
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
    lib.SSL_CTX_set_tlsext_servername_callback(raw, SERVER_NAME_CALLBACK)
    # Tickets only: a session cache in memory would serve only one worker.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_timeout(TICKET_LIFETIME_S)
    if not route.session_tickets:
        context.set_options(SSL.OP_NO_TICKET)
    context.set_session_id(hashlib.sha256(f"{number}/{listener.name}/{index}".encode()).digest())
    lib.SSL_CTX_set_verify(raw, SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, VERIFY_CALLBACK)
    if route.send_ca_names:
        cas.ask_for(context)
    keep: tuple[Any, ...] = (context,)
    if protocols:
        callback = selector(tuple(name.encode("ascii") for name in protocols))
        lib.SSL_CTX_set_alpn_select_cb(raw, callback, NULL)
        keep = (context, callback)
    own = cache.context_inputs.periods_of(f"{where}.certificate", f"{where}.client_ca")
    of_pool = periods_of_pool(cache.context_inputs, route.pool)
    return InboundRoute(
        label=route.label,
        pool=route.pool,
        context=raw,
        negotiates_alpn=bool(protocols),
        rules=compile_rules(route.allow),
        ca_valid_until=cas.valid_until,
        periods=own,
        pool_periods=of_pool,
        valid_from_at=max(own.from_at, of_pool.from_at),
        valid_until_at=min(own.until_at, of_pool.until_at),
        keep=keep,
    )


def _outbound(
    cache: _FileCache, pool_name: str, pool: Pool, index: int, backend: Backend
) -> Generator[None, None, BackendTarget]:
    where = pool_path(pool_name)
    if pool.machine_certificate is None or pool.machine_key is None or pool.backend_ca is None:
        what = "needs machine_certificate, machine_key and backend_ca"
        raise ConfigError([Problem(where, what, "set all three")])
    context = new_context(
        SSL.TLS_CLIENT_METHOD, where, pool, ciphers_checked=cache.context_inputs.ciphers_checked
    )
    cas = yield from cache.cas(f"{where}.backend_ca", pool.backend_ca)
    cas.use(context)
    key = f"{where}.machine_certificate"
    use_pair(context, key, cache.pair(key, pool.machine_certificate, pool.machine_key))
    raw = context._context  # noqa: SLF001 (the pointer has no public name)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    lib.SSL_CTX_set_verify(raw, SSL.VERIFY_PEER, VERIFY_CALLBACK)
    # A backend may request the certificate later, for some resources (RFC 8446, 4.6.2).
    lib.SSL_CTX_set_post_handshake_auth(raw, 1)

    host, port = parse_address(backend.address)
    name = backend.name or host
    # One context per backend: the name to verify is set once, and not per connection.
    _set_name_to_verify(raw, f"{where}.backend[{index}].name", name)
    family, sockaddr = endpoint_of(
        f"{where}.backend[{index}].address", host, port, cache.context_inputs.addresses
    )
    return BackendTarget(
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
