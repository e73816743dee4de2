"""Builds every TLS context of one configuration, before the workers are forked.

So all workers have the same session-ticket keys, resume each other's sessions, and
share the memory of the contexts. A reload builds a new generation with new ticket keys,
so no client that the new configuration refuses can resume a session.

Never: reads a socket; keeps a key anywhere but inside OpenSSL.
Next: `relay.tls.stream.accept`
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

from relay.config.address import is_ip
from relay.config.backend_address import host_of
from relay.config.key_path import listener_paths, pool_path
from relay.config.listener_model import Route
from relay.config.model import Config
from relay.config.pool_model import CLIENT_NAME, Backend, Pool
from relay.config.rules.stickiness import alpn_of
from relay.config.section import Crl
from relay.core.proxy_header_out import SendProxy
from relay.core.routes import RouteTable
from relay.errors import ConfigError, Problem
from relay.steps import at_once
from relay.tcp_options import options_of_new
from relay.tls.access_rules import compile_rules
from relay.tls.alpn import selector
from relay.tls.certificates.configured import ChainRules, PairFiles
from relay.tls.certificates.pem import KeyPair, load_key_pair, read_certificates
from relay.tls.context_inputs import (
    ContextInputs,
    endpoint_of,
    periods_of_pool,
    periods_of_route,
    sources_of,
)
from relay.tls.cookie_secret import load_secrets
from relay.tls.generation import (
    AnyRoute,
    BackendTarget,
    Generation,
    InboundRoute,
    PassthroughRoute,
    PlainTarget,
)
from relay.tls.lint_staples import read_response
from relay.tls.material import backend_context, route_context
from relay.tls.ocsp_response import ResponseError
from relay.tls.plain_targets import plain_target
from relay.tls.raw import NULL
from relay.tls.revocation.revoked_set import RevokedSet
from relay.tls.revocation.trust_sets import set_name
from relay.tls.staple import Staple
from relay.tls.trust import BackendTrust, ClientTrust, CrlPolicy
from relay.tls.trust_store import TrustedCas


def build_generation(
    config: Config, number: int, context_inputs: ContextInputs | None = None
) -> Generation:
    """Build every context.

    Raises ConfigError with all problems: files, cipher lists, names to verify.
    """
    return at_once(build_steps(config, number, context_inputs or ContextInputs()))


def build_steps(
    config: Config, number: int, context_inputs: ContextInputs
) -> Generator[None, None, Generation]:
    """Like `build_generation`, but yields after every few milliseconds of work."""
    cache = ParsedFiles(context_inputs)
    secrets, problems = load_secrets(config, context_inputs.files)
    inbound: dict[str, tuple[InboundRoute, ...]] = {}
    tables: dict[str, RouteTable[AnyRoute]] = {}
    targets: dict[str, tuple[BackendTarget, ...]] = {}
    plain: dict[str, tuple[PlainTarget, ...]] = {}
    paths = listener_paths([each.name for each in config.listener])
    for where, listener in zip(paths, config.listener, strict=True):
        routes: list[InboundRoute] = []
        entries: list[tuple[tuple[str, ...], AnyRoute]] = []
        for index, route in enumerate(listener.route):
            if route.mode == "passthrough":
                here = f"{where}.route[{index}]"
                entries.append((route.sni, PassthroughRoute(here, route.label, route.pool)))
                continue
            protocols = alpn_of(config, route)
            try:
                made = yield from _inbound(cache, f"{where}.route[{index}]", route, protocols)
            except ConfigError as error:
                problems += error.problems
            else:
                routes.append(made)
                entries.append((route.sni, made))
            yield
        inbound[listener.name] = tuple(routes)
        tables[listener.name] = RouteTable.build(entries)
    for name, pool in config.pool.items():
        members: list[BackendTarget] = []
        others: list[PlainTarget] = []
        for index, backend in enumerate(pool.backend):
            try:
                if pool.is_plain:
                    others.append(plain_target(context_inputs, name, pool, index))
                else:
                    members.append((yield from _outbound(cache, name, pool, index, backend)))
            except ConfigError as error:
                problems += error.problems
            yield
        targets[name], plain[name] = tuple(members), tuple(others)
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    return Generation(
        number,
        config,
        inbound,
        tables,
        targets,
        plain,
        secrets,
        dict(context_inputs.addresses),
        dict(context_inputs.periods),
        dict(context_inputs.revoked),
        dict(context_inputs.users),
    )


class ParsedFiles:
    """Parses each file once, for all routes and pools that use it."""

    def __init__(self, context_inputs: ContextInputs) -> None:
        self.context_inputs = context_inputs
        self._pairs: dict[PairFiles, KeyPair] = {}
        self._cas: dict[tuple[Path, ChainRules], TrustedCas] = {}

    def pair(self, where: str, files: PairFiles) -> KeyPair:
        """A certificate and its key. Raises ConfigError."""
        if files not in self._pairs:
            certificate, key, passphrase = files
            self._pairs[files] = load_key_pair(
                where, certificate, key, self.context_inputs.files, passphrase
            )
        return self._pairs[files]

    def cas(self, where: str, file: Path, rules: ChainRules) -> Generator[None, None, TrustedCas]:
        """The CAs of a file. Raises ConfigError."""
        found = self._cas.get((file, rules))
        if found is None:
            problems: list[Problem] = []
            found = TrustedCas(rules)
            yield from found.fill(
                read_certificates(where, file, problems, self.context_inputs.files)
            )
            if problems:
                raise ConfigError(problems)
            self._cas[file, rules] = found
        return found

    def response(self, file: Path) -> bytes:
        """The bytes of an OCSP response; b"" if it cannot be read."""
        try:
            return read_response(file, self.context_inputs.files)
        except ResponseError:
            return b""

    def staple(self, file: Path | None, pair: KeyPair, cas: TrustedCas) -> Staple | None:
        """What a route with this certificate staples; None without a file for it."""
        if file is None:
            return None
        staple = Staple(file)
        staple.set(self.response(file), pair.chain, cas.certificates)
        return staple

    def revoked_by(self, cas: Path | None, crl: Crl | None) -> RevokedSet | None:
        """What is on the revocation lists of these CAs."""
        if cas is None or crl is None:
            return None
        return self.context_inputs.revoked.get(set_name(cas, crl))


def _inbound(
    files: ParsedFiles, where: str, route: Route, protocols: tuple[str, ...]
) -> Generator[None, None, InboundRoute]:
    if route.certificate is None or route.private_key is None or route.client_ca is None:
        what = "needs certificate, private_key and client_ca"
        raise ConfigError([Problem(where, what, "set all three")])
    cas = yield from files.cas(f"{where}.client_ca", route.client_ca, ChainRules.of(route))
    key_files = PairFiles(route.certificate, route.private_key, route.key_passphrase_file)
    pair = files.pair(f"{where}.certificate", key_files)
    callback: Any = NULL
    if protocols:
        callback = selector(tuple(name.encode("ascii") for name in protocols))
    checked = files.context_inputs.ciphers_checked
    revoked = files.revoked_by(route.client_ca, route.revocation)
    rules = compile_rules(route.allow, route.deny, accept_servers=route.accept_server_certificates)
    trust = ClientTrust(
        rules,
        cas.trust(revoked),
        CrlPolicy.of(route.revocation),
        expiry_grace_s=_expiry_grace_s(route),
        ca_file=route.client_ca,
        lists=set_name(route.client_ca, route.revocation) if route.revocation else "",
    )
    staple = files.staple(route.ocsp_response, pair, cas)
    context = route_context(
        where, route, pair, cas, trust.cas, callback, staple, ciphers_checked=checked
    )
    made = InboundRoute(
        where=where,
        label=route.label,
        pool=route.pool,
        owner=context,
        alpn_callback=callback,
        starttls=bool(route.starttls),
        staple=staple,
        material=context,
        pair=pair,
        cas=cas,
        trust=trust,
        revoked=revoked,
    )
    periods = files.context_inputs.periods
    made.set_periods(periods_of_route(periods, where), periods_of_pool(periods, route.pool))
    return made


def _outbound(
    files: ParsedFiles, pool_name: str, pool: Pool, index: int, backend: Backend
) -> Generator[None, None, BackendTarget]:
    where = pool_path(pool_name)
    if pool.machine_certificate is None or pool.machine_key is None or pool.backend_ca is None:
        what = "needs machine_certificate, machine_key and backend_ca"
        raise ConfigError([Problem(where, what, "set all three")])
    cas = yield from files.cas(f"{where}.backend_ca", pool.backend_ca, ChainRules.of(pool))
    key_files = PairFiles(pool.machine_certificate, pool.machine_key, pool.key_passphrase_file)
    pair = files.pair(f"{where}.machine_certificate", key_files)
    name = backend.name or host_of(backend.address)
    sni = backend.sni or pool.sni
    sends_client_name = sni == CLIENT_NAME
    sent = name if sends_client_name or not sni else sni
    checked = files.context_inputs.ciphers_checked
    context = backend_context(where, pool, index, name, pair, cas, ciphers_checked=checked)
    revoked = files.revoked_by(pool.backend_ca, pool.revocation)
    family, sockaddr = endpoint_of(
        f"{where}.backend[{index}].address", backend.address, files.context_inputs.addresses
    )
    return BackendTarget(
        where=where,
        index=index,
        pool=pool_name,
        route=backend.route,
        address=backend.address,
        family=family,
        sockaddr=sockaddr,
        name=name,
        server_name=b"" if is_ip(sent) else sent.encode("ascii") + b"\0",
        options=options_of_new(pool.keepalive, pool.user_timeout_s),
        sources=sources_of(where, pool.source),
        sends_client_name=sends_client_name,
        context=context,
        pair=pair,
        cas=cas,
        trust=BackendTrust(
            cas.trust(revoked),
            CrlPolicy.of(pool.revocation),
            expiry_grace_s=_expiry_grace_s(pool),
            ca_file=pool.backend_ca,
            lists=set_name(pool.backend_ca, pool.revocation) if pool.revocation else "",
        ),
        revoked=revoked,
        send_proxy=SendProxy.of(pool),
        starttls=bool(pool.starttls),
    )


def _expiry_grace_s(settings: Route | Pool) -> float:
    """How long a session outlives its peer's certificate."""
    return settings.expiry_grace_s if settings.at_expiry == "close" else float("inf")
