"""Looks up a service: its SRV records (RFC 2782), and the addresses of their targets.

dnspython asks the name servers of /etc/resolv.conf, over UDP, and over TCP when an
answer is too long. The addresses of targets come with the answer, or are asked for. A
target that DNS does not know may still be in /etc/hosts.

What a server sends is not trusted: a record with an impossible target or port is left
out, and at most MAX_ADDRESSES addresses are used.

Never: decides whose certificate is accepted. That is fixed in the configuration.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import dns.exception
import dns.flags
import dns.name
import dns.rdatatype

# dnspython would import each kind of record when it first sees one, but the checker may
# have lost the right to read Python's files by then.
import dns.rdtypes.ANY.CNAME
import dns.rdtypes.ANY.DNAME
import dns.rdtypes.ANY.NS
import dns.rdtypes.ANY.OPT
import dns.rdtypes.ANY.RRSIG
import dns.rdtypes.ANY.SOA
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dns.rdtypes.IN.SRV
import dns.resolver
import dns.rrset

from relay.checker.host_lookup import Found, NoSuchNameError, look_up_host
from relay.config.address import host_name_fault
from relay.config.backend_address import SERVICE_PREFIX
from relay.core.untrusted import clip, clip_names
from relay.shared.addresses import Located
from relay.shared.entities import MAX_ADDRESSES

# For one question, over all name servers and tries; and for all of one look-up.
QUESTION_S = 5.0
LOOK_UP_S = 20.0
_TRIES = 2
RESOLV_CONF = "/etc/resolv.conf"
_ADDRESS_TYPES = (dns.rdatatype.A, dns.rdatatype.AAAA)

# By service, the last addresses of its targets, for when they cannot be asked for. Only
# targets of the last answer are kept: their names may change all the time.
_last: dict[str, dict[str, tuple[Located, ...]]] = {}


class _Record(NamedTuple):
    """One SRV record; records are sorted by it."""

    priority: int
    lightness: int
    target: str
    port: int

    @property
    def weight(self) -> int:
        return -self.lightness


def look_up_service(name: str) -> Found:
    """The endpoints of "srv:NAME", the preferred ones first. Raises OSError."""
    return _LookUp(name).found()


class _LookUp:
    """One look-up of one service."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._until_at = time.monotonic() + LOOK_UP_S
        self._resolver = _make_resolver()
        self._hints: dict[str, list[tuple[str, int]]] = {}
        self._ttl_s = float("inf")
        self._left_out: list[str] = []
        self._errors: list[str] = []

    def found(self) -> Found:
        """All that was found. Raises OSError."""
        answer = self._ask(dns.name.from_text(self._name.removeprefix(SERVICE_PREFIX), None), "SRV")
        if answer.rrset is None:
            return Found(ttl_s=self._ttl_s, nothing="it has no SRV record")
        self._take_hints(answer.response.additional)
        if len(answer.rrset) == 1 and answer.rrset[0].target == dns.name.root:
            return Found(
                ttl_s=self._ttl_s, nothing='the target of its SRV record is ".": not available'
            )
        located = self._locate(sorted(self._usable(answer.rrset)))
        if not located:
            why = self._errors or self._left_out
            raise OSError(0, f"none of its SRV records can be used: {clip_names(why)}")
        if len(located) > MAX_ADDRESSES:
            self._left_out.append(f"addresses beyond {MAX_ADDRESSES}")
        reasons = self._errors + self._left_out
        left_out = clip_names(reasons) if reasons else ""
        return Found(tuple(located[:MAX_ADDRESSES]), self._ttl_s, left_out)

    def _ask(self, name: dns.name.Name, kind: str) -> dns.resolver.Answer:
        """The answer to one question. Raises OSError."""
        resolver = self._resolver
        patience_s = max(QUESTION_S, _TRIES * resolver.timeout * len(resolver.nameservers))
        lifetime = min(patience_s, self._until_at - time.monotonic())
        if lifetime <= 0:
            raise OSError(0, f"the servers took longer than {LOOK_UP_S:g} s")
        try:
            answer = resolver.resolve(
                name, kind, lifetime=lifetime, search=True, raise_on_no_answer=False
            )
        except dns.resolver.NXDOMAIN as error:
            raise NoSuchNameError(0, "the name does not exist (NXDOMAIN)") from error
        except (dns.exception.DNSException, ValueError) as error:
            raise OSError(0, _in_words(error)) from error
        if answer.rrset is not None:
            self._ttl_s = min(self._ttl_s, answer.chaining_result.minimum_ttl)
        return answer

    def _take_hints(self, additional: Iterable[dns.rrset.RRset]) -> None:
        """Addresses that the server sent along with the records."""
        for rrset in additional:
            if rrset.rdtype in _ADDRESS_TYPES:
                found = self._hints.setdefault(_text(rrset.name), [])
                found += [(record.address, rrset.ttl) for record in rrset]

    def _usable(self, records: dns.rrset.RRset) -> Iterator[_Record]:
        """The records that can be used; the others are noted."""
        for record in records:
            target = _text(record.target)
            fault = _fault(target, record.port)
            if fault:
                self._left_out.append(clip(f"{target}:{record.port} {fault}", 128))
            else:
                yield _Record(record.priority, -record.weight, target, record.port)

    def _locate(self, records: list[_Record]) -> list[Located]:
        found: dict[Located, None] = {}
        at: dict[str, tuple[Located, ...]] = {}
        for record in records:
            if len(found) > MAX_ADDRESSES:
                break
            target = record.target
            if target not in at:
                at[target] = self._addresses(target)
            for each in at[target]:
                found[
                    each._replace(
                        port=record.port,
                        priority=record.priority,
                        weight=record.weight,
                        siblings=len(at[target]),
                    )
                ] = None
        _last[self._name] = at
        return list(found)

    def _addresses(self, target: str) -> tuple[Located, ...]:
        """The addresses of a target; the last ones if it cannot be asked for."""
        try:
            return self._hinted(target) or self._asked(target)
        except NoSuchNameError:
            self._left_out.append(f"{target} has no address")
            return ()
        except OSError as error:
            self._errors.append(f"{target}: {error.strerror or error}")
            return _last.get(self._name, {}).get(target, ())

    def _hinted(self, target: str) -> tuple[Located, ...]:
        hints = self._hints.get(target, [])
        self._ttl_s = min([self._ttl_s, *(ttl for _, ttl in hints)])
        return _sorted(address for address, _ in hints)

    def _asked(self, target: str) -> tuple[Located, ...]:
        """Ask for both kinds of addresses. Raises OSError."""
        name = dns.name.from_text(target)
        texts: list[str] = []
        try:
            for kind in _ADDRESS_TYPES:
                answer = self._ask(name, kind.name)
                texts += [record.address for record in answer.rrset or ()]
        except NoSuchNameError:
            return look_up_host(target)
        return _sorted(texts) if texts else look_up_host(target)


def _make_resolver() -> dns.resolver.Resolver:
    """A resolver as /etc/resolv.conf is now; its cache is off. Raises OSError."""
    try:
        return dns.resolver.Resolver(RESOLV_CONF)
    except dns.resolver.NoResolverConfiguration:
        local = dns.resolver.Resolver(configure=False)
        local.nameservers = ["127.0.0.1"]  # as the C library does
        return local
    except (ValueError, dns.exception.DNSException) as error:
        raise OSError(0, f"{RESOLV_CONF}: {clip(str(error), 256)}") from error


def _fault(target: str, port: int) -> str:
    """Why a record cannot be used; "" if it can."""
    if not port:
        return "has port 0"
    if target == ".":
        return "is no target beside others"
    labels = target.split(".")
    if (len(labels) == 4 and all(each.isdecimal() for each in labels)) or ":" in target:
        return "is an IP address, where a host name must be"
    return host_name_fault(target)


def _text(name: dns.name.Name) -> str:
    """A name as text, without the dot at its end."""
    return name.to_text(omit_final_dot=True).lower() if name != dns.name.root else "."


def _sorted(texts: Iterable[str]) -> tuple[Located, ...]:
    """Each address once, in an order that does not change: servers rotate theirs."""
    return tuple(Located(text) for text in sorted(set(texts)))


def _in_words(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, dns.resolver.NoNameservers):
        return clip(f"no name server gave an answer: {_per_server(error)}", 256)
    if isinstance(error, dns.exception.Timeout):
        return clip(f"no answer in time: {_per_server(error)}", 256)
    return clip(str(error) or type(error).__name__, 256)


def _per_server(error: dns.exception.DNSException) -> str:
    """What each server answered: each different answer once."""
    errors = error.kwargs.get("errors", ()) if error.kwargs else ()
    said = (f"{each[0].removeprefix('Do53:')} said {each[3]}" for each in errors)
    return "; ".join(dict.fromkeys(said)) or "none was asked"
