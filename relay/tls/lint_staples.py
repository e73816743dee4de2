"""Checks the OCSP responses that routes staple.

A response that cannot be stapled disables nothing: clients then see no response, as
from most servers. Only a certificate with must-staple needs one.

Never: raises for a bad file.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from relay.config.key_path import routes_of
from relay.config.listener_model import Route
from relay.config.model import Config
from relay.credentials import file_remedy, shown
from relay.errors import Problem
from relay.files import Files
from relay.tls.certificates.certificate import Certificate, subject_of
from relay.tls.certificates.file_sets import MAX_RESPONSE_BYTES
from relay.tls.certificates.findings import Finding, Level, day
from relay.tls.certificates.pem import read_certificates
from relay.tls.ocsp_response import ResponseError, check_response

# RFC 7633: a client refuses such a certificate without a stapled response.
_TLS_FEATURE = bytes.fromhex("2b06010505070118")  # 1.3.6.1.5.5.7.1.24
_STATUS_REQUEST = b"\x02\x01\x05"
_MUST_STAPLE = "its certificate has must-staple, so clients that check it refuse the handshake"


def lint_staples(config: Config, now: datetime, files: Files) -> Iterator[Finding]:
    """One finding for each route that staples, or should."""
    for where, _, route in routes_of(config):
        chain = _certificates(route.certificate, files)
        if not chain:
            continue  # it has a finding of its own
        needed = must_staple(chain[0])
        if route.ocsp_response is not None:
            known = _certificates(route.client_ca, files)
            yield _lint(where, route.ocsp_response, chain, known, now, files, needed=needed)
        elif needed:
            what = f"no ocsp_response is set, and {_MUST_STAPLE}"
            remedy = "set ocsp_response to a file that a job of yours keeps up to date"
            subject = subject_of(chain[0])
            yield Finding(
                Level.WARNING, shown(_file(route)), subject, what, remedy, f"{where}.ocsp_response"
            )


def reasons_to_keep(config: Config, file: Path, now: datetime, files: Files) -> Iterator[Problem]:
    """Why a renewed response must not take the place of the one in use.

    A response for another certificate may: that certificate may come a moment later.
    """
    for where, _, route in routes_of(config):
        chain = _certificates(route.certificate, files)
        if route.ocsp_response == file and chain:
            known = _certificates(route.client_ca, files)
            try:
                check_response(read_response(file, files), chain, known, now.timestamp())
            except ResponseError as error:
                if not error.early:
                    what = f"{shown(file)} {error.what}"
                    yield Problem(f"{where}.ocsp_response", what, error.remedy)


def must_staple(certificate: Certificate) -> bool:
    """Whether the certificate promises a stapled response (RFC 7633)."""
    value = certificate.extension(_TLS_FEATURE)
    return value is not None and _STATUS_REQUEST in value


def read_response(file: Path, files: Files) -> bytes:
    """The bytes of a response file. Raises ResponseError."""
    try:
        data, _ = files.read(file, MAX_RESPONSE_BYTES)
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        remedy = file_remedy(file, "have the job that fetches it write it there")
        raise ResponseError(what, remedy) from None
    if len(data) > MAX_RESPONSE_BYTES:
        raise ResponseError(f"is larger than {MAX_RESPONSE_BYTES} bytes")
    return data


def _lint(
    where: str,
    file: Path,
    chain: tuple[Certificate, ...],
    known: tuple[Certificate, ...],
    now: datetime,
    files: Files,
    *,
    needed: bool,
) -> Finding:
    key, subject = f"{where}.ocsp_response", subject_of(chain[0])
    try:
        usable = check_response(read_response(file, files), chain, known, now.timestamp())
    except ResponseError as error:
        what = f"is not stapled: it {error.what}"
        if needed:
            what += f"; {_MUST_STAPLE}"
        return Finding(Level.WARNING, shown(file), subject, what, error.remedy, key)
    until = datetime.fromtimestamp(usable.until_at, UTC)
    return Finding(Level.INFO, shown(file), subject, f"is stapled until {day(until)}", "", key)


def _file(route: Route) -> Path:
    assert route.certificate is not None  # noqa: S101  for mypy
    return route.certificate


def _certificates(file: Path | None, files: Files) -> tuple[Certificate, ...]:
    problems: list[Problem] = []
    return () if file is None else tuple(read_certificates("", file, problems, files))
