"""The list of all configured certificates, for metrics and tables.

Never: reads a private key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from relay.config.model import Config
from relay.errors import ConfigError, Problem
from relay.files import Files
from relay.quick_pickle import QuickPickle
from relay.tls.certificates.certificate import Certificate
from relay.tls.certificates.configured import authorities_of, pairs_of
from relay.tls.certificates.pem import read_certificates


@dataclass(frozen=True, slots=True)
class CertificateInfo(QuickPickle):
    """One certificate of a configured file.

    Names follow RFC 4514, times are Unix time.
    """

    file: str
    subject: str
    issuer: str
    serial_hex: str
    not_before_at: float
    not_after_at: float


def certificate_info(certificate: Certificate, file: str) -> CertificateInfo:
    """The fields of one certificate that operators search for."""
    return CertificateInfo(
        file=file,
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        serial_hex=certificate.serial_text,
        not_before_at=certificate.not_valid_before_utc.timestamp(),
        not_after_at=certificate.not_valid_after_utc.timestamp(),
    )


def certificates_of(config: Config, files: Files | None = None) -> tuple[CertificateInfo, ...]:
    """Every certificate in every configured file, once per file and subject.

    If several have the same subject, for example after a CA's renewal, the one that
    expires first is listed. Raises ConfigError with the problems of every file.
    """
    named = {use.files.certificate: use.where for use in pairs_of(config)} | {
        use.file: use.where for use in authorities_of(config)
    }
    return certificates_in(named, files or Files())


def certificates_in(named: Mapping[Path, str], files: Files) -> tuple[CertificateInfo, ...]:
    """Like `certificates_of`, for files with the configuration key of each."""
    problems: list[Problem] = []
    found: dict[tuple[str, str], CertificateInfo] = {}
    for file, where in named.items():
        for certificate in read_certificates(where, file, problems, files):
            info = certificate_info(certificate, str(file))
            known = found.get((info.file, info.subject))
            if known is None or info.not_after_at < known.not_after_at:
                found[info.file, info.subject] = info
    if problems:
        raise ConfigError(problems)
    return tuple(found.values())
