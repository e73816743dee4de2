"""Compares a route's TLS 1.2 cipher suites with the kind of its certificate's key.

In TLS 1.2 each suite names a kind of key: with a list of RSA suites alone, and an EC
key, the relay refuses every TLS 1.2 client. TLS 1.3 suites name none.

Never: looks at a pool: for the certificate of a client, the suite does not matter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import lru_cache

from relay.config.model import Config
from relay.errors import ConfigError, Problem
from relay.files import Files
from relay.tls.certificates.certificate import Certificate, subject_of
from relay.tls.certificates.configured import PairUse, pairs_of
from relay.tls.certificates.findings import Finding, Level
from relay.tls.certificates.key_kinds import kind_in_suites
from relay.tls.certificates.pem import KeyPair, load_key_pair
from relay.tls.cipher_offers import suites_named

_ALL = frozenset(("RSA", "ECDSA"))


def lint_key_suites(config: Config, files: Files) -> list[Finding]:
    """The certificates whose key no TLS 1.2 suite of their route can use."""
    found: list[Finding] = []
    for use in pairs_of(config):
        if _kinds(use.ciphers_tls12) != _ALL:
            with contextlib.suppress(ConfigError):  # reported elsewhere
                found += _findings(use, files)
    return found


def _findings(use: PairUse, files: Files) -> Iterator[Finding]:
    certificate, key, passphrase = use.files
    pair = load_key_pair(use.where, certificate, key, files, passphrase)
    if what := _misfit(use, pair.leaf):
        level = Level.ERROR if use.max_version == "TLSv1.2" else Level.WARNING
        yield Finding(level, pair.file, subject_of(pair.leaf), what, _remedy(pair.leaf), use.where)


def suites_lost(use: PairUse, before: KeyPair, after: KeyPair) -> Iterator[Problem]:
    """Why a renewal would refuse the TLS 1.2 clients that the pair in use serves."""
    what = _misfit(use, after.leaf)
    if what and not _misfit(use, before.leaf):
        subject = f'{after.file} ("{subject_of(after.leaf)}")'
        yield Problem(use.where, f"{subject} {what}", _remedy(after.leaf))


def _misfit(use: PairUse, leaf: Certificate) -> str:
    """What is wrong with this key for TLS 1.2 clients; empty if nothing is."""
    kind, kinds = kind_in_suites(leaf), _kinds(use.ciphers_tls12)
    if not kind or kind in kinds:
        return ""
    need = f"an {kind.removesuffix('DSA')} key"
    return f"has {need}, and ciphers_tls12 has no suite for it: TLS 1.2 clients are refused"


def _remedy(leaf: Certificate) -> str:
    suites = f"ECDHE-{kind_in_suites(leaf)}"
    return f"add {suites} suites to ciphers_tls12, or issue it with another kind of key"


@lru_cache
def _kinds(ciphers_tls12: str) -> frozenset[str]:
    """The kinds of keys that this list has suites for; all if there is no list."""
    if not ciphers_tls12:
        return _ALL
    found = set()
    for suite in suites_named(ciphers_tls12, ""):
        words = suite.name.split("-")
        if "ECDSA" in words:
            found.add("ECDSA")
        elif not {"DSS", "PSK", "SRP", "ADH", "AECDH"} & set(words):
            found.add("RSA")  # ECDHE-RSA, DHE-RSA, and those that name no key: AES128-SHA
    return frozenset(found)
