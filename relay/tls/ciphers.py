"""Which cipher settings of a route or pool are refused, and which get a warning.

A cipher list is like a program: aliases add suites, `!` removes them, and `@SECLEVEL`
changes what all of it allows. So the relay does not interpret the text. OpenSSL makes a
ClientHello with the same settings, and connections can use exactly the suites in it.

Never: raises for a setting that OpenSSL does not accept, or looks at a certificate
(that is `tls.certificates.lint`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from relay.config.key_path import pool_path, routes_of
from relay.config.listener_model import Route
from relay.config.model import Config
from relay.config.pool_model import Pool
from relay.errors import Problem
from relay.tls.certificates.findings import Finding, Level
from relay.tls.cipher_offers import Offer, Suite, level_of, make_context, offer_of, suites_named

# Appended to every list: suites without a certificate do not verify the peer, suites
# without encryption let everybody read.
ALWAYS_EXCLUDED = ":!aNULL:!eNULL"

_SEPARATORS = re.compile(r"[:, ;]|(?=@)")  # as in ssl_ciph.c; also splits DEFAULT@SECLEVEL=0
_ANONYMOUS = ("ADH-", "AECDH-")
_PSK = re.compile(r"PSK-|SRP-")
_FORWARD_SECRET = ("TLS_", "ECDHE-", "DHE-")
_OUTDATED = re.compile(r"RC4|RC2|DES|IDEA|MD5|NULL|^EXP")
# Elliptic curves of less than 224 bits (IANA, TLS Supported Groups).
_WEAK_GROUPS = frozenset((1, 2, 3, 4, 5, 15, 16, 17, 18, 19))
_MIN_BITS = 112  # what OpenSSL's security level 2 requires
_MAX_SHOWN = 4
_MAX_CHARACTERS = 160
_GOOD_12 = "use ciphers with GCM or CHACHA20, or remove the key to get the default"
Versions = tuple[str, str]  # min_version and max_version
GROUPS_REMEDY = "separate names with colons, for example X25519:P-256"


@dataclass(frozen=True, slots=True)
class CipherProblem:
    """What is wrong with one key; `refused`: the relay does not start with it."""

    key: str
    what: str
    remedy: str
    refused: bool


def lint_ciphers(config: Config) -> list[Finding]:
    """The errors and warnings about the cipher settings of a configuration."""
    key_paths: dict[CipherProblem, list[str]] = {}
    for where, settings in _settings_of(config):
        for problem in cipher_problems(settings):
            key_paths.setdefault(problem, []).append(f"{where}.{problem.key}")
    findings = []
    for problem, paths in key_paths.items():
        level = Level.ERROR if problem.refused else Level.WARNING
        findings.append(Finding(level, "", "", problem.what, problem.remedy, ", ".join(paths)))
    return sorted(findings, key=lambda finding: list(Level).index(finding.level))


def refused_ciphers(where: str, settings: Route | Pool) -> list[Problem]:
    """The cipher settings with which no context may be built."""
    return [
        Problem(f"{where}.{each.key}", each.what, each.remedy)
        for each in cipher_problems(settings)
        if each.refused
    ]


def cipher_problems(settings: Route | Pool) -> tuple[CipherProblem, ...]:
    """What is weak, or unknown to OpenSSL, in the settings of one route or pool."""
    s = settings
    return _problems(
        (s.min_version, s.max_version), s.ciphers_tls12, s.ciphersuites_tls13, s.groups
    )


def _settings_of(config: Config) -> Iterator[tuple[str, Route | Pool]]:
    for where, _, route in routes_of(config):
        if route.mode == "terminate":
            yield where, route
    for name, pool in config.pool.items():
        yield pool_path(name), pool


@lru_cache(maxsize=256)
def _problems(versions: Versions, tls12: str, tls13: str, groups: str) -> tuple[CipherProblem, ...]:
    rejected = tuple(_rejected_keys(tls12, tls13, groups))
    keys = {each.key for each in rejected}
    # OpenSSL's default replaces a rejected key, so that the others are checked too.
    found = _accepted_problems(
        versions,
        "DEFAULT" if "ciphers_tls12" in keys else tls12,
        "" if "ciphersuites_tls13" in keys else tls13,
        "" if "groups" in keys else groups,
    )
    return (*rejected, *(each for each in found if each.key not in keys))


def _accepted_problems(
    versions: Versions, tls12: str, tls13: str, groups: str
) -> tuple[CipherProblem, ...]:
    """The problems of settings that OpenSSL accepts one by one."""
    oldest, newest = versions
    context = make_context(oldest, tls12 + ALWAYS_EXCLUDED, tls13, groups, newest=newest)
    if context is None:
        what = f"OpenSSL does not accept {_quoted(tls12)}"
        return (CipherProblem("ciphers_tls12", what, _GOOD_12, refused=True),)
    offer = offer_of(context)
    named = list(_named_problems(oldest, tls12, tls13))
    if offer.failure:
        if not any(each.refused for each in named):
            key = "groups" if re.search("group|key share", offer.failure) else "ciphersuites_tls13"
            what = f"leaves nothing that OpenSSL can use: {offer.failure}"
            named.append(
                CipherProblem(key, what, "remove the key to get the default", refused=True)
            )
        return (*_level_problems(level_of(context)), *named)
    return (*_level_problems(level_of(context)), *named, *_offered_problems(versions, offer))


def _rejected_keys(tls12: str, tls13: str, groups: str) -> Iterator[CipherProblem]:
    """The keys that OpenSSL does not accept, each tried alone."""
    if make_context("TLSv1.2", tls12 + ALWAYS_EXCLUDED, "", "") is None:
        what = f"OpenSSL knows no cipher with authentication and encryption in {_quoted(tls12)}"
        yield CipherProblem("ciphers_tls12", what, "see: openssl ciphers -v -tls1_2", refused=True)
    if make_context("TLSv1.2", "", tls13, "") is None:
        what = f"OpenSSL does not accept {_quoted(tls13)}"
        yield CipherProblem(
            "ciphersuites_tls13", what, "see: openssl ciphers -v -tls1_3", refused=True
        )
    if make_context("TLSv1.2", "", "", groups) is None:
        what = f"OpenSSL does not accept {_quoted(groups)}"
        yield CipherProblem("groups", what, GROUPS_REMEDY, refused=True)


def _level_problems(level: int) -> Iterator[CipherProblem]:
    if level < 2:
        what = (
            "sets OpenSSL's security level to 0, which allows suites without encryption,"
            " and keys and signatures of any strength"
            if level == 0
            else "sets OpenSSL's security level to 1, which allows RSA keys of 1024 bits"
        )
        yield CipherProblem(
            "ciphers_tls12", what, "remove @SECLEVEL; OpenSSL's default is 2", refused=level == 0
        )


def _named_problems(version: str, tls12: str, tls13: str) -> Iterator[CipherProblem]:
    """Report suites that the lists should not name, even if they would not be used."""
    if version == "TLSv1.2":
        named, unknown = _named_on_purpose(tls12)
        if named:
            what = (
                "contains ciphers without encryption, without certificate,"
                f" or with a shared password: {_shown(named)}"
            )
            yield CipherProblem("ciphers_tls12", what, "remove them", refused=True)
        if unknown:
            what = f"contains names that this OpenSSL does not have, and ignores: {_shown(unknown)}"
            remedy = "correct or remove it; see: openssl ciphers -v -tls1_2"
            yield CipherProblem("ciphers_tls12", what, remedy, refused=False)
    words = [word for word in tls13.split(":") if word]
    known = {word: suites for word in words if (suites := suites_named("", word))}
    if plain := [
        word for word, suites in known.items() if any(suite.bits == 0 for suite in suites)
    ]:
        what = f"contains cipher suites without encryption (RFC 9150): {_shown(plain)}"
        yield CipherProblem("ciphersuites_tls13", what, "remove them", refused=True)
    if unknown := [word for word in words if word not in known]:
        what = f"contains names that this OpenSSL does not have, and ignores: {_shown(unknown)}"
        remedy = "correct or remove it; see: openssl ciphers -v -tls1_3"
        yield CipherProblem("ciphersuites_tls13", what, remedy, refused=False)


def _offered_problems(versions: Versions, offer: Offer) -> Iterator[CipherProblem]:
    key = "ciphers_tls12"
    usable = [suite for suite in offer.suites if not suite.tls13]
    oldest, newest = versions
    if oldest == "TLSv1.2" and not usable:
        what = "enables no cipher that the relay can use in TLS 1.2"
        other = '; or set min_version = "TLSv1.3"' if newest == "TLSv1.3" else ""
        yield CipherProblem(key, what, f"{_GOOD_12}{other}", refused=True)
    if newest == "TLSv1.2" and not offer.groups and usable:
        what = "has no group that TLS 1.2 can use, so ciphers with ECDHE cannot be agreed on"
        yield CipherProblem("groups", what, "add X25519 or P-256", refused=True)
    if weak := [suite.name for suite in offer.suites if _is_broken(suite)]:
        yield CipherProblem(key, f"enables broken ciphers: {_shown(weak)}", _GOOD_12, refused=True)
    if cbc := [suite.name for suite in usable if suite.name.endswith("-SHA")]:
        what = (
            "enables ciphers with CBC and SHA-1, which only clients from before 2013 need:"
            f" {_shown(cbc)}"
        )
        yield CipherProblem(key, what, _GOOD_12, refused=False)
    if static := [suite.name for suite in usable if not suite.name.startswith(_FORWARD_SECRET)]:
        what = (
            "enables ciphers without forward secrecy: a stolen key can decrypt recorded"
            f" sessions: {_shown(static)}"
        )
        yield CipherProblem(key, what, "use only ciphers with ECDHE", refused=False)
    if weak := [str(group) for group in offer.groups if group in _WEAK_GROUPS]:
        what = f"enables elliptic curves of less than 224 bits: TLS group number {_shown(weak)}"
        yield CipherProblem("groups", what, "use X25519, P-256 or P-384", refused=True)


def _is_broken(suite: Suite) -> bool:
    anonymous = suite.name.startswith(_ANONYMOUS)
    return anonymous or suite.bits < _MIN_BITS or _OUTDATED.search(suite.name) is not None


def _named_on_purpose(text: str) -> tuple[list[str], list[str]]:
    """The forbidden suites that the list asks for, and the words OpenSSL does not know.

    A word asks for them if it stands for nothing else. Aliases such as HIGH include
    anonymous suites among many others; those are dropped silently.
    """
    left = {suite.name for suite in suites_named(text, "")}
    named: dict[str, None] = {}
    unknown: list[str] = []
    for word in _SEPARATORS.split(text):
        if not word or word[0] in "!-+@":
            continue
        suites = suites_named(word, "")
        if not suites:
            unknown.append(word)
        elif all(_never_used(suite) for suite in suites):
            named |= {suite.name: None for suite in suites if suite.name in left}
    return list(named), unknown


def _never_used(suite: Suite) -> bool:
    return (
        suite.bits == 0 or suite.name.startswith(_ANONYMOUS) or _PSK.search(suite.name) is not None
    )


def _quoted(text: str) -> str:
    """A setting for a message, on one line and clipped."""
    return repr(text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}…")


def _shown(names: list[str]) -> str:
    """The first names, clipped, because an operator may have written anything."""
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(name[:60] for name in names[:_MAX_SHOWN]) + more
