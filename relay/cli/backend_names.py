"""Reads the certificates of backends, for `relay import-httpd --probe`.

The names only save the operator from typing: a running relay verifies its backends
itself, in every handshake.

Never: fills in a name of a certificate that backend_ca does not verify.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path

from relay.config.address import is_ip
from relay.importer.build import WantedName
from relay.importer.pool_tables import FoundName
from relay.importer.report import one_line
from relay.tls.certificates.certificate import Certificate

CONNECT_S = 3.0
# For all backends together.
PATIENCE_S = 60.0


def read_names(
    wanted: Iterable[WantedName], directory: Path
) -> tuple[Mapping[tuple[str, int], FoundName], list[str]]:
    """The names that were found, and a line for each backend."""
    deadline = time.monotonic() + PATIENCE_S
    found: dict[tuple[str, int], FoundName] = {}
    lines = []
    for each in {(one.host, one.port): one for one in wanted}.values():
        where = f"probe of {each.host}:{each.port}"
        if time.monotonic() > deadline:
            lines.append(f"{where}: left out, the others took {PATIENCE_S:g} s")
            continue
        name, text = _probe(each, directory)
        if name is not None:
            found[each.host, each.port] = name
        lines.append(one_line(f"{where}: {text}", 400))
    return found, lines


def _probe(wanted: WantedName, directory: Path) -> tuple[FoundName | None, str]:
    ca = directory / wanted.ca
    try:
        der, why = _certificate(wanted, directory, ca)
        certificate = Certificate.from_der(der)
    except (OSError, ValueError) as error:
        return None, f"no certificate was read: {error}"
    names = certificate.alt_names
    dns = [each for each in names.dns if not each.startswith("*.")] if names else []
    every = [*(names.dns if names else ()), *(str(ip_address(each)) for each in _ips(names))]
    subject = certificate.subject.rfc4514_string()
    shown = (
        f"{subject} of {certificate.issuer.rfc4514_string()} is for {', '.join(every) or 'no name'}"
    )
    verified = f"verified by {ca}" if not why else f"NOT verified by {ca}: {why}"
    own = wanted.host in every
    name = wanted.host if own else next(iter([*dns, *every]), "")
    if not name or name.startswith("*."):
        return None, f"{shown}; {verified}; set name to a name that it carries"
    chosen = "which is the address" if own else "not the address"
    filled = "name" if not why else "name stays out"
    return FoundName(name, not why), f"{shown}; {verified}; {filled}: {name}, {chosen}"


def _ips(names: object) -> Iterable[bytes]:
    return getattr(names, "ip", ())


def _certificate(wanted: WantedName, directory: Path, ca: Path) -> tuple[bytes, str]:
    """The DER, and why it is not verified, or "". Raises OSError or ValueError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    why = ""
    try:
        context.load_verify_locations(ca)
    except (OSError, ValueError) as error:
        why = f"{ca} cannot be used: {error}"
    with contextlib.suppress(OSError, ValueError):
        # Never asks for a passphrase on the terminal.
        files = directory / wanted.certificate, directory / wanted.key
        context.load_cert_chain(*files, password="")
    if not why:
        try:
            return _handshake(wanted, context), ""
        except ssl.SSLCertVerificationError as error:
            why = error.verify_message
    context.verify_mode = ssl.CERT_NONE
    return _handshake(wanted, context), why


def _handshake(wanted: WantedName, context: ssl.SSLContext) -> bytes:
    address = (wanted.host, wanted.port)
    name = None if is_ip(wanted.host) else wanted.host
    with (
        socket.create_connection(address, CONNECT_S) as sock,
        context.wrap_socket(sock, server_hostname=name) as connection,
    ):
        return connection.getpeercert(binary_form=True) or b""
