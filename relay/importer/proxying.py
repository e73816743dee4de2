"""Where a virtual host sends its requests: ProxyPass and its kin, and balancers.

Never: decides what becomes of a parameter (see `importer.pools`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from relay.config.address import host_name_fault, is_ip
from relay.importer.hosts import Host
from relay.importer.paths import is_every_path, path_of
from relay.importer.tree import Directive, Scope

TLS_SCHEMES = frozenset({"https", "wss", "h2"})
_URL = re.compile(r"([a-z0-9+.-]+)://([^/?#]*)([/?#].*)?", re.IGNORECASE | re.DOTALL)
_UNIX = re.compile(r"unix:([^|]+)\|(\w+)(?::.*)?", re.IGNORECASE | re.DOTALL)
_PORTS = {"https": 443, "wss": 443, "h2": 443, "http": 80, "ws": 80, "h2c": 80, "ajp": 8009}
_PROXY_FLAG = re.compile(r"\[(?:.*,)?\s*(?:P|proxy)\s*(?:,.*)?\]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Url:
    """Where a request goes. For a unix socket, `host` is its path and `port` 0."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def address(self) -> str:
        """As relay writes it."""
        if self.scheme == "unix":
            return f"unix:{self.host}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_url(text: str) -> Url | None:
    """The parts of a URL; None if it is none."""
    if unix := _UNIX.fullmatch(text):
        return Url("unix", unix[1], 0, "")
    match = _URL.fullmatch(text)
    if match is None:
        return None
    scheme, host = match[1].lower(), match[2].rpartition("@")[2]
    port = _PORTS.get(scheme, 443)
    if scheme != "balancer" and (with_port := re.fullmatch(r"(.*):([0-9]{1,5})", host)):
        if not is_ip(host.strip("[]")) or host.startswith("["):
            host, port = with_port[1], int(with_port[2])
    elif host.endswith(":"):
        host = host[:-1]
    bare = host.strip("[]")
    if not bare or not 0 < port < 65_536 or ("$" in bare or "%" in bare):
        return None
    if scheme != "balancer" and not is_ip(bare) and host_name_fault(bare):
        return None
    return Url(scheme, bare if scheme == "balancer" else bare.lower(), port, match[3] or "")


Parameters = dict[str, tuple[str, Directive]]


@dataclass(slots=True)
class Member:
    """One member of a balancer."""

    url: Url
    directive: Directive
    parameters: Parameters


@dataclass(slots=True)
class Balancer:
    """A balancer, or one backend without one. `sections` may have TLS settings."""

    name: str
    members: list[Member] = field(default_factory=list)
    parameters: Parameters = field(default_factory=dict)
    sections: list[Directive] = field(default_factory=list)
    sets: list[Directive] = field(default_factory=list)
    wrong: list[Directive] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Target:
    """One line that passes requests on. Without a usable URL, `url` is None."""

    path: str
    url: Url | None
    directive: Directive
    parameters: Parameters
    excluded: bool = False

    @property
    def is_everything(self) -> bool:
        """Whether it holds for every path."""
        return is_every_path(self.path)


def parameters_of(words: Sequence[str], directive: Directive) -> Parameters:
    """The `key=value` words of a directive."""
    found: Parameters = {}
    for word in words:
        name, equals, text = word.partition("=")
        if equals:
            found[name.strip().lower()] = text.strip().strip("\"'"), directive
    return found


def targets_of(host: Host) -> list[Target]:
    """Every line that passes requests of a virtual host on, its own ones first."""
    return [*_targets(host.scope.own, ""), *_targets(host.scope.server, "")]


def _targets(directives: Sequence[Directive], path: str) -> Iterator[Target]:
    for each in directives:
        if each.name in {"location", "locationmatch"}:
            yield from _targets(each.children, path_of(each) or "/")
        elif each.name in {"if", "limit", "proxy"}:  # a <Proxy> that is not closed has others
            yield from _targets(each.children, path)
        elif each.name in {"proxypass", "proxypassmatch"}:
            words = [word for word in each.args if word.lower() not in {"interpolate", "noquery"}]
            plain = [word for word in words if "=" not in word or "://" in word.partition("=")[0]]
            if (not path and len(plain) < 2) or not plain:
                continue
            where, to = (path, plain[0]) if path and len(plain) == 1 else (plain[0], plain[1])
            more = parameters_of([word for word in words if word not in plain], each)
            yield _target(where, to, each, more)
        elif each.name == "rewriterule" and len(each.args) > 2 and _PROXY_FLAG.match(each.arg(2)):
            yield _target(each.arg(0), each.arg(1), each, {})


def _target(where: str, to: str, directive: Directive, parameters: Parameters) -> Target:
    if to == "!":
        return Target(where, None, directive, parameters, excluded=True)
    # "$1" is what the pattern has found, so the path stays as it was.
    url = parse_url(re.sub(r"/?\$[0-9]+|/?%\{[^}]*\}", "", to))
    return Target(where, url, directive, parameters)


def balancers_of(scope: Scope) -> dict[str, Balancer]:
    """The balancers that a virtual host can use, by their names in lower case."""
    found: dict[str, Balancer] = {}
    for directives in (scope.server, scope.own):
        for each in directives:
            if each.name == "proxy" and (url := parse_url(each.value)):
                if url.scheme == "balancer":
                    mine = found.setdefault(url.host.lower(), Balancer(url.host))
                    mine.sections.append(each)
                    for inside in each.children:
                        _add(mine, inside, inside.args)
            elif (
                each.name in {"balancermember", "proxyset"}
                and (url := parse_url(each.value))
                and url.scheme == "balancer"
            ):
                mine = found.setdefault(url.host.lower(), Balancer(url.host))
                _add(mine, each, each.args[1:])
    return found


def _add(balancer: Balancer, directive: Directive, words: Sequence[str]) -> None:
    if directive.name == "proxyset":
        balancer.parameters |= parameters_of(words, directive)
        balancer.sets.append(directive)
    elif directive.name == "balancermember":
        url = parse_url(words[0]) if words else None
        if url is None or url.scheme == "balancer":
            balancer.wrong.append(directive)
        else:
            balancer.members.append(Member(url, directive, parameters_of(words[1:], directive)))
