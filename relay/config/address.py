"""Host names and `host:port` addresses: their syntax, and nothing else.

Never: resolves a name or opens a socket.
"""

from __future__ import annotations

import ipaddress
import re

from relay.errors import ConfigError, Problem

# Host names have no underscore (RFC 1123, section 2.1), but many names in use do, and
# browsers, curl and OpenSSL accept it.
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
# inet_aton, and so getaddrinfo, reads names that end like this as numbers: 0x7f000001,
# 10.1, 256.1.1.1.
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")


def is_ip(host: str) -> bool:
    """Whether this is an IPv4 or IPv6 address, without brackets.

    An address is never sent as SNI (RFC 6066, section 3).
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # ipaddress accepts any text after "%". The name of an interface has at most 15
    # bytes, and messages must stay on one printable line.
    scope = getattr(address, "scope_id", None)
    return scope is None or re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", scope) is not None


def canonical_ip(host: str) -> str:
    """One spelling for all spellings of an address for which `is_ip` holds."""
    return str(ipaddress.ip_address(host)).lower()


def overlap(one: tuple[str, int], other: tuple[str, int]) -> bool:
    """Whether listening sockets on these addresses and ports would share clients.

    They do if the addresses are equal, or if one is the wildcard of its family. Port 0
    never overlaps: the kernel chooses a free port.
    """
    (host, port), (other_host, other_port) = one, other
    if not port or port != other_port or (":" in host) != (":" in other_host):
        return False
    return canonical_ip(host) == canonical_ip(other_host) or any(
        ipaddress.ip_address(each).is_unspecified for each in (host, other_host)
    )


def conflict(one: str, other: str) -> bool:
    """Whether sockets without SO_REUSEPORT cannot listen on both of these addresses."""
    if not one or not other or one.startswith("unix:") or other.startswith("unix:"):
        return bool(one) and one == other
    return overlap(parse_address(one), parse_address(other))


def host_name_fault(name: str) -> str:
    """What is wrong with a DNS host name; "" if it is valid (RFC 1123, section 2.1)."""
    if not name:
        return "is empty"
    if not name.isascii():
        return 'has characters beyond ASCII; write the "xn--" form of the name'
    if name.endswith("."):
        return "ends in a dot; leave the dot out"
    if len(name) > 253:
        return f"has {len(name)} characters; a host name has at most 253"
    labels = name.split(".")
    for label in labels:
        if not _LABEL.fullmatch(label):
            return (
                f'has the label "{label}"; a label has 1 to 63 letters, digits, hyphens and'
                " underscores, and no hyphen at either end"
            )
    if _NUMBER.fullmatch(labels[-1]):
        return "ends in a number but is not an IPv4 address; write all four parts, or a name"
    return ""


def unix_path(address: str) -> str:
    """The path in "unix:PATH"; "" for any other address."""
    return address.removeprefix("unix:") if address.startswith("unix:") else ""


def _refuse(text: str, what: str, remedy: str) -> ConfigError:
    return ConfigError([Problem(text, what, remedy)])


def parse_address(text: str, *, min_port: int = 0) -> tuple[str, int]:
    """Split `host:port` or `[v6]:port` into host (no brackets) and port.

    Raises ConfigError with one Problem, whose `where` is the text.
    """
    if "://" in text:
        raise _refuse_url(text)
    prefix = text.partition(":")[0] + ":"
    if prefix != prefix.lower() and prefix.lower() in {"srv:", "unix:"}:
        what = f"{_quoted(text)} begins with {_quoted(prefix)}, which is a host here"
        raise _refuse(text, what, f"write it in lower case: {_quoted(prefix.lower())}")
    host, colon, port_text = text.rpartition(":")
    if is_ip(text) or not colon:
        example = (
            f"[{text}]:443"
            if ":" in text
            else f"127.0.0.1:{text}"
            if text.isdecimal()
            else f"{text or '192.0.2.1'}:443"
        )
        raise _refuse(
            text, f"{_quoted(text)} has no port", f"write host:port, for example {_quoted(example)}"
        )
    # int() also accepts "+1", "1_0" and Arabic digits.
    if not re.fullmatch(r"[0-9]{1,5}", port_text) or not min_port <= int(port_text) <= 65535:
        raise _refuse(
            text,
            f"the port of {_quoted(text)} is not a number from {min_port} to 65535",
            'write host:port, for example "192.0.2.1:443"',
        )
    if host.startswith("[") and host.endswith("]"):
        return _unbracketed(text, host[1:-1], port_text), int(port_text)
    if ":" in host:
        what = "several colons and no brackets" if is_ip(host) else "more than a host and a port"
        raise _refuse(
            text,
            f"{_quoted(text)} has {what}",
            "write host:port, and an IPv6 address in brackets: [2001:db8::1]:443",
        )
    if host in {"", "*"}:
        raise _refuse(
            text,
            f"{_quoted(text)} has no host",
            "write an IP address before the port; for all addresses of this machine write"
            f' "0.0.0.0:{port_text}" and "[::]:{port_text}"',
        )
    if not is_ip(host) and (why := host_name_fault(host)):
        raise _refuse(
            text, f"the host of {_quoted(text)} {why}", "write an IP address or a host name"
        )
    return host, int(port_text)


def _refuse_url(text: str) -> ConfigError:
    scheme, _, rest = text.partition("://")
    host = rest.partition("/")[0]
    with_port = host if re.search(r":[0-9]+$", host) else f"{host or '192.0.2.1'}:443"
    plain = "; there is no plain HTTP or TCP" if scheme.lower() in {"http", "tcp", "ajp"} else ""
    return _refuse(
        text,
        f"{_quoted(text)} is a URL, and an address has no scheme or path{plain}",
        f"write host:port, for example {_quoted(with_port)}",
    )


def _unbracketed(text: str, address: str, port_text: str) -> str:
    """The IPv6 address inside brackets. Raises ConfigError for anything else."""
    if not is_ip(address) or ":" not in address:
        raise _refuse(
            text,
            f"{_quoted(address)} in {_quoted(text)} is not an IPv6 address",
            "only IPv6 addresses go in brackets",
        )
    mapped = ipaddress.IPv6Address(address).ipv4_mapped
    if mapped is not None:
        raise _refuse(
            text,
            f"{_quoted(text)} is an IPv4 address written as IPv6",
            f'write "{mapped}:{port_text}"',
        )
    return address


def _quoted(text: str) -> str:
    # ascii() keeps a message on one line, whatever the file contains.
    return f'"{ascii(text)[1:-1]}"' if len(text) <= 80 else f'"{ascii(text[:80])[1:-1]}…"'
