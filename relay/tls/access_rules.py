"""A route's `allow` and `deny`, compiled, and compared with a client's certificate.

`deny` is judged first, and fails closed: it compares as people read, its patterns are
wide (see `tls.patterns`), and a certificate with a name that cannot be read is denied
if `deny` has entries for names of that kind. In `allow` such a name matches nothing.

The issuer is the CA that signed the client's certificate. Its name is compared with the
issuer in that certificate, whose chain OpenSSL has verified, and its key id with the
authorityKeyIdentifier in it. OpenSSL has compared that with the subjectKeyIdentifier of
the CA, if the CA has one.

Never: verifies a certificate; allows what `deny` cannot judge.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import TypeVar
from unicodedata import category, normalize

from relay.config.distinguished_name import NameKey, fold, parse_name
from relay.config.listener_model import Allow, Deny
from relay.core.untrusted import clip, clip_names
from relay.quick_pickle import QuickPickle
from relay.tls.certificates.name_keys import key_of_name
from relay.tls.identity import Identity
from relay.tls.patterns import UriPattern, dns_pattern, wide_forms

_V4_IN_V6 = bytes(10) + b"\xff\xff"


@dataclass(frozen=True, slots=True)
class Entries(QuickPickle):
    """The entries of `allow` or `deny`.

    Each dictionary maps the value to compare to the entry's text, so that long lists
    cost no more than short ones. A mail address is "local@domain", or "@domain" for all
    of a domain. An IP range is its first and its last address.
    """

    wide: bool
    kinds: frozenset[str]  # that have entries
    cn: dict[str, str]
    ou: dict[str, str]
    email: dict[str, str]
    dns: dict[str, str]
    uri: dict[str, str]
    ip: dict[bytes, str]
    dns_patterns: tuple[tuple[re.Pattern[str], str], ...]
    uri_patterns: tuple[tuple[UriPattern, str], ...]
    ip_ranges: tuple[tuple[bytes, bytes, str], ...]
    issuer_names: dict[NameKey, str]
    issuer_key_ids: dict[bytes, str]
    serials: dict[bytes, str]
    fingerprints: dict[str, str]

    @classmethod
    def of(cls, table: Allow, *, wide: bool) -> Entries:
        """Compile the entries of a table that `config.rules.access` has accepted."""
        to_text = _caseless if wide else str
        dns = [text for text in table.san_dns if text.startswith("*.")]
        uri = [text for text in table.san_uri if "*" in text]
        ranges = [_ip_range(text) for text in table.ip]
        named = [text for text in table.issuer if "=" in text]
        by_key = [text for text in table.issuer if "=" not in text]
        return cls(
            wide,
            frozenset(kind for kind in type(table).model_fields if getattr(table, kind)),
            {to_text(text): text for text in table.cn},
            {to_text(text): text for text in table.ou},
            {_mail_key(text.removeprefix("*"), wide=wide): text for text in table.email},
            {_dns_key(text, wide=wide): text for text in table.san_dns if text[:2] != "*."},
            {_uri_key(text, wide=wide): text for text in table.san_uri if "*" not in text},
            {first: text for first, last, text in ranges if first == last},
            tuple((dns_pattern(text, wide=wide), text) for text in dns),
            tuple((UriPattern.parse(text, wide=wide), text) for text in uri),
            tuple(each for each in ranges if each[0] != each[1]),
            {parse_name(text): text for text in named},
            {bytes.fromhex(text.replace(":", "")): text for text in by_key},
            {_serial_contents(text): text for text in table.serial},
            {text.replace(":", "").upper(): text for text in table.fingerprint_sha256},
        )

    def match(self, who: Identity) -> tuple[str, str] | None:
        """The kind and the text of the first entry that matches; None if none does."""
        return next(self._matches(who), None)

    def _matches(self, who: Identity) -> Iterator[tuple[str, str]]:
        if found := self.fingerprints.get(who.fingerprint):
            yield "fingerprint_sha256", found
        if self.serials and (found := self.serials.get(who.for_lists.serial)):
            yield "serial", found
        if self.cn:
            yield from _found("cn", self.cn, map(_caseless, who.cn) if self.wide else who.cn)
        if self.ou:
            yield from _found("ou", self.ou, map(_caseless, who.ou) if self.wide else who.ou)
        if self.dns:
            yield from _found(
                "san_dns", self.dns, (_dns_key(name, wide=self.wide) for name in who.san_dns)
            )
        if self.uri:
            yield from _found("san_uri", self.uri, _uri_keys(who.san_uri, wide=self.wide))
        if self.email:
            yield from _found("email", self.email, _mail_keys(who.san_email, wide=self.wide))
        if self.ip:
            yield from _found("ip", self.ip, map(_plain, who.san_ip))
        for pattern, text in self.dns_patterns:
            if any(map(pattern.fullmatch, who.san_dns)):
                yield "san_dns", text
        for uri, text in self.uri_patterns:
            if any(map(uri.matches, who.san_uri)):
                yield "san_uri", text
        for first, last, text in self.ip_ranges:
            for raw in map(_plain, who.san_ip):
                if len(raw) == len(first) and first <= raw <= last:
                    yield "ip", text
        if self.issuer_names and (found := self.issuer_names.get(key_of_name(who.issuer_der))):
            yield "issuer", found
        if found := self.issuer_key_ids.get(who.for_lists.issuer_key_id):
            yield "issuer", found

    def cannot_judge(self, who: Identity) -> str:
        """The kind of names of which one cannot be compared with the entries, or ""."""
        unreadable = self.kinds & who.unreadable
        if unreadable:
            return min(unreadable)
        by_key = self.issuer_key_ids and not who.for_lists.issuer_key_id
        by_name = self.issuer_names and not key_of_name(who.issuer_der)
        return "issuer" if by_key or by_name else ""


@dataclass(frozen=True, slots=True)
class AccessRules(QuickPickle):
    """Which clients a route lets in, of those with a certificate of its CAs.

    Without entries in `allowed`, all that `denied` does not name.
    """

    allowed: Entries
    denied: Entries
    any_entry: bool
    accept_servers: bool = False  # also those whose certificate is for servers only

    def allow(self, who: Identity) -> bool:
        """Whether the rules let this client in."""
        if not (who.tls_use.for_clients or self.accept_servers):
            return False
        return not self.any_entry or self._allow(who)

    def _allow(self, who: Identity) -> bool:
        if self.denied.kinds and (self.denied.match(who) or self.denied.cannot_judge(who)):
            return False
        return (
            not self.allowed.kinds
            # The most common entry; this saves 0.9 µs for `match`.
            or not self.allowed.cn.keys().isdisjoint(who.cn)
            or self.allowed.match(who) is not None
        )

    def why_not(self, who: Identity) -> str:
        """Why they do not, for people."""
        if found := self.denied.match(who):
            kind, text = found
            why = f'deny.{kind} has "{clip(text, 128)}"'
        elif (kind := self.denied.cannot_judge(who)) == "issuer":
            why = "it does not say which key signed it, so deny.issuer cannot be judged"
        elif kind:
            why = f"it has a name that cannot be read, so deny.{kind} cannot be judged"
        elif not (who.tls_use.for_clients or self.accept_servers):
            why = "it is for servers only, and accept_server_certificates is not set"
        else:
            why = "no entry of allow matches"
        return f"{why}; {self._described(who)}"

    def _described(self, who: Identity) -> str:
        """What the certificate has, of the kinds that the rules name."""
        kinds = self.allowed.kinds | self.denied.kinds
        addresses = (str(ip_address(raw)) for raw in who.san_ip)
        names = clip_names((*who.cn, *who.san_dns, *who.san_uri, *who.san_email, *addresses))
        parts = [f"names in the certificate: {names}{who.unread and f' ({who.unread})'}"]
        if "ou" in kinds and who.ou:
            parts.append(f"OU {clip_names(who.ou)}")
        if "issuer" in kinds:
            key_id = who.for_lists.issuer_key_id.hex(":").upper() or "unknown"
            parts.append(f"issuer {clip(who.issuer, 256)}, key id {clip(key_id, 256)}")
        if "serial" in kinds:
            parts.append(f"serial {who.serial}")
        return "; ".join((*parts, f"SHA-256 {who.fingerprint}"))


def compile_rules(
    allow: Allow, deny: Deny | None = None, *, accept_servers: bool = False
) -> AccessRules:
    """Compile both tables of a route."""
    allowed = Entries.of(allow, wide=False)
    denied = Entries.of(deny or Deny(), wide=True)
    any_entry = bool(allowed.kinds or denied.kinds)
    return AccessRules(allowed, denied, any_entry, accept_servers)


_Key = TypeVar("_Key", str, bytes)


def _found(kind: str, entries: dict[_Key, str], keys: Iterable[_Key]) -> Iterator[tuple[str, str]]:
    return ((kind, entries[key]) for key in keys if key in entries)


@lru_cache(maxsize=1024)
def _caseless(text: str) -> str:
    """A name as people read it: without case, width and invisible characters."""
    if not (text.isascii() and text.isprintable()):
        for _ in range(2):  # folding the case may leave other forms (Unicode, 3.13)
            text = normalize("NFKC", text).casefold()
        text = "".join(each for each in text if category(each) not in {"Cc", "Cf"})
    return fold(text).casefold()


def _dns_key(name: str, *, wide: bool) -> str:
    return name.lower().removesuffix(".") if wide else name.lower()


def _uri_key(text: str, *, wide: bool) -> str:
    return wide_forms(text)[-1] if wide else text


def _uri_keys(uris: Iterable[str], *, wide: bool) -> Iterator[str]:
    for uri in uris:
        yield from wide_forms(uri) if wide else (uri,)


def _mail_key(address: str, *, wide: bool) -> str:
    """The address to compare: its domain without case, in `deny` all of it."""
    local, _, domain = address.rpartition("@")
    return f"{local.lower() if wide else local}@{_dns_key(domain, wide=wide)}"


def _mail_keys(addresses: Iterable[str], *, wide: bool) -> Iterator[str]:
    for address in addresses:
        local, at, domain = address.rpartition("@")
        if at and (local or wide):
            yield _mail_key(address, wide=wide)
            yield _mail_key(f"@{domain}", wide=wide)


def _ip_range(text: str) -> tuple[bytes, bytes, str]:
    network = ip_network(text)
    return network.network_address.packed, network.broadcast_address.packed, text


def _plain(raw: bytes) -> bytes:
    """An IPv4 address that is written as IPv6 is the same address."""
    return raw[12:] if raw.startswith(_V4_IN_V6) and len(raw) == 16 else raw


def _serial_contents(text: str) -> bytes:
    """The contents of a serial number's INTEGER (X.690, 8.3): the fewest bytes."""
    number = int(text, 16)
    return number.to_bytes((number + (number < 0)).bit_length() // 8 + 1, signed=True)
