"""Which clients an operator has ended and keeps out: `relay kick`.

A kick names one client by an address or a network, by the SHA-256 of its certificate,
or by a name in its certificate: the subject as the access log prints it, `CN=` and one
common name, or a URI such as a SPIFFE ID. The text alone tells which of these it is.

Times are CLOCK_MONOTONIC seconds, which are the same for all processes of a machine and
which no change of the date moves.

Never: reads a clock, or looks at a connection.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from relay.core.address_set import UNIX

MOST_KICKS = 1_000
LONGEST_S = 31_536_000
TEXT_CHARACTERS = 200
_TARGET_CHARACTERS = 1_024
_SHA256_DIGITS, _SHA1_DIGITS = 64, 40
_MAPPED_BITS = 96  # an IPv4 address on an IPv6 socket, RFC 4291, 2.5.5.2
_HEX = frozenset("0123456789abcdefABCDEF")
_FORMS = (
    "write an address without a port (192.0.2.7), a network (192.0.2.0/24, 2001:db8::/48), the"
    " SHA-256 of the certificate, its subject as the access log prints it, CN=NAME, or a URI of"
    " the certificate"
)


class Kind(Enum):
    """What a kick compares."""

    ADDRESS = "address"
    FINGERPRINT = "fingerprint"
    NAME = "name"


@dataclass(frozen=True, slots=True)
class Target:
    """The client that a kick names; `text` is the one way to write it."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Kick:
    """One client that is kept out until `until_at`, by whom and why."""

    target: Target
    by: str
    why: str
    since_at: float
    until_at: float

    def describe(self, now: float) -> str:
        """For the access log: who asked, why, and how long the client is kept out."""
        left_s = self.until_at - now
        left = f"; kept out for another {_duration(left_s)}" if left_s > 0 else ""
        why = f": {self.why}" if self.why else ""
        return f"by {self.by}{why}{left}"


@dataclass(frozen=True, slots=True)
class KickRequest:
    """What an operator asks for. `undo` lifts an earlier kick."""

    target: Target
    duration_s: float
    by: str
    why: str
    undo: bool


def parse_request(request: Mapping[str, Any], uid: int) -> KickRequest:
    """The kick in a request of JSON types, from a process of this user.

    Raises ValueError with what is wrong.
    """
    text, duration_s = request.get("target"), request.get("duration_s", 0)
    if not isinstance(text, str):
        raise ValueError("target must be text")  # noqa: TRY004  one kind of error
    is_number = isinstance(duration_s, int | float) and not isinstance(duration_s, bool)
    if not is_number or not 0 <= duration_s <= LONGEST_S:
        raise ValueError(f"duration_s must be from 0 to {LONGEST_S} s, which is 365 days")
    return KickRequest(
        parse_target(text),
        float(duration_s),
        f"{_printable(request.get('by')) or 'unknown'} (uid {uid})",
        _printable(request.get("why")),
        request.get("undo") is True,
    )


def _printable(text: object) -> str:
    if not isinstance(text, str):
        return ""
    return "".join(char if char.isprintable() else "?" for char in text)[:TEXT_CHARACTERS].strip()


def parse_target(text: str) -> Target:
    """Which client this text names. Raises ValueError with what is wrong."""
    text = text.strip()
    if not text or len(text) > _TARGET_CHARACTERS or not text.isprintable():
        raise ValueError(f"the client to kick is empty, too long or not printable; {_FORMS}")
    digits = text.replace(":", "")
    if _HEX.issuperset(digits) and len(digits) == _SHA256_DIGITS:
        return Target(Kind.FINGERPRINT, digits.upper())
    if _HEX.issuperset(digits) and len(digits) == _SHA1_DIGITS:
        raise ValueError(f"{text} is a SHA-1 fingerprint; give the SHA-256, 64 digits")
    if "=" in text or "://" in text:
        return Target(Kind.NAME, text)
    return Target(Kind.ADDRESS, _network(text))


def _network(text: str) -> str:
    network: ipaddress.IPv4Network | ipaddress.IPv6Network
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    bare = bare.partition("%")[0]  # a zone: the address counts on every interface
    try:
        network = ipaddress.ip_network(bare, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} names no client; {_FORMS}") from None
    try:
        ipaddress.ip_network(bare)
    except ValueError:
        raise ValueError(f"{text} has bits outside of its prefix; write {network}") from None
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        inner = network.network_address.ipv4_mapped
        if inner is not None:
            network = ipaddress.IPv4Network((inner, network.prefixlen - _MAPPED_BITS))
    if network.prefixlen == 0:
        raise ValueError(f"{text} is every client; to end all sessions use relay drain or stop")
    if network.prefixlen == network.max_prefixlen:
        return str(network.network_address)
    return str(network)


def _duration(seconds: float) -> str:
    """90 as "90 s", 7200 as "120 min": rounded up, so it never says 0."""
    whole = max(1, -int(-seconds // 1))
    return f"{whole} s" if whole < 180 else f"{-(-whole // 60)} min"


class KickList:
    """Finds the kick that keeps a client out.

    A look-up costs the same for one kick and for MOST_KICKS, except that networks with
    different prefix lengths are looked up one after the other.
    """

    __slots__ = ("_exact", "_networks", "kicks", "until_at")

    def __init__(self, kicks: Iterable[Kick]) -> None:
        # The later of two kicks with one target counts.
        self._exact: dict[tuple[Kind, str], Kick] = {}
        self._networks: dict[tuple[int, int], dict[int, Kick]] = {}
        for kick in kicks:
            self._exact[kick.target.kind, kick.target.text] = kick
        self.kicks: Sequence[Kick] = tuple(self._exact.values())
        self.until_at = max((kick.until_at for kick in self.kicks), default=0.0)
        for kick in self.kicks:
            if kick.target.kind is Kind.ADDRESS:
                network = ipaddress.ip_network(kick.target.text)
                shift = network.max_prefixlen - network.prefixlen
                group = self._networks.setdefault((network.version, shift), {})
                group[int(network.network_address) >> shift] = kick

    def of_address(self, host: str, now: float) -> Kick | None:
        """The kick of a client address, as the socket or the PROXY header has it."""
        if not self._networks or host == UNIX:
            return None
        address = ipaddress.ip_address(host.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address):
            address = address.ipv4_mapped or address
        number, version = int(address), address.version
        for (of_version, shift), group in self._networks.items():
            if of_version == version:
                kick = group.get(number >> shift)
                if kick is not None and now < kick.until_at:
                    return kick
        return None

    def of_names(self, fingerprint: str, names: Iterable[str], now: float) -> Kick | None:
        """The kick of a certificate: its SHA-256 in upper case, and its names."""
        keys = [(Kind.FINGERPRINT, fingerprint), *((Kind.NAME, name) for name in names)]
        for key in keys:
            kick = self._exact.get(key)
            if kick is not None and now < kick.until_at:
                return kick
        return None


def kept_out(kicks: Iterable[Kick], now: float) -> KickList | None:
    """The kicks that count now. None if there are none: nothing is looked up."""
    left = [kick for kick in kicks if now < kick.until_at]
    return KickList(left) if left else None
