"""What `relay check` reports about certificates: findings and shared texts.

Never: checks a certificate, beyond its dates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from relay.errors import Place, Problem
from relay.tls.certificates.certificate import Certificate, subject_of
from relay.tls.certificates.openssl import VerifyFailure

SOON = timedelta(days=30)
REISSUE = "reissue it with every extension at most once and well-formed (RFC 5280, 4.2)"

Certificates = tuple[Certificate, ...]


class Level(StrEnum):
    """The level of a finding.

    Start and reload refuse an ERROR, unless it is temporary. A WARNING works today, but
    needs attention. An INFO is shown for completeness.
    """

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding: which certificate of which file, what is wrong, and what to do.

    `where` is the configuration key that names the file; several are joined by commas.
    `file` and `subject` are empty when the file could not be read or parsed; `what`
    names the file then.
    """

    level: Level
    file: str
    subject: str
    what: str
    remedy: str
    where: str
    temporary: bool = False
    """It may disappear by itself, such as a certificate that is not valid yet.

    Start and reload accept it, and disable only the routes or pools that use the
    certificate.
    """
    place: Place | None = field(default=None, compare=False)


def file_finding(problem: Problem) -> Finding:
    """The finding for a file that cannot be used."""
    return Finding(Level.ERROR, "", "", problem.what, problem.remedy, problem.where)


def as_problem(finding: Finding) -> Problem:
    """A finding as one line that names the file and the certificate's subject."""
    about = " ".join(
        filter(None, (finding.file, f"({finding.subject})" if finding.subject else ""))
    )
    what = f"{about}: {finding.what}" if about else finding.what
    return Problem(finding.where, what, finding.remedy, place=finding.place)


def merge_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Make one finding of those that differ only in `where`, and put errors first."""
    wheres: dict[tuple[Level, str, str, str, str, bool], dict[str, None]] = {}
    for one in findings:
        key = (one.level, one.file, one.subject, one.what, one.remedy, one.temporary)
        wheres.setdefault(key, {})[one.where] = None
    found = [Finding(*key[:5], ", ".join(each), key[5]) for key, each in wheres.items()]
    return sorted(found, key=lambda finding: list(Level).index(finding.level))


def info_lines(
    found: Iterable[Finding], where: str, file: str, certificates: Certificates
) -> Iterator[Finding]:
    """One INFO finding for each certificate without an error or a warning."""
    with_findings = {finding.subject for finding in found if finding.level is not Level.INFO}
    for certificate in certificates:
        if subject_of(certificate) not in with_findings:
            what = (
                f"valid until {day(certificate.not_valid_after_utc)},"
                f" issued by {quoted(certificate.issuer.rfc4514_string())}"
            )
            yield Finding(Level.INFO, file, subject_of(certificate), what, "", where)


class DateProblem(NamedTuple):
    """What is wrong with a certificate's dates."""

    level: Level
    what: str
    remedy: str


def date_problems(certificate: Certificate, now: datetime) -> Iterator[DateProblem]:
    """Report a certificate that has expired, expires soon, or is not valid yet."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        what = f"expired on {day(end)}, {days(now - end)} ago"
        yield DateProblem(Level.ERROR, what, "renew it")
    elif now < begin:
        what = f"is not valid before {day(begin)}, {days(begin - now)} from now"
        remedy = "compare this machine's clock with the CA's, or reissue the certificate"
        yield DateProblem(Level.ERROR, what, remedy)
    elif end - now < SOON:
        what = f"expires on {day(end)}, in {days(end - now)}"
        yield DateProblem(Level.WARNING, what, "renew it")


def if_other(failure: VerifyFailure, certificate: Certificate) -> str:
    """The subject of the certificate at fault in parentheses, if it is another one."""
    return (
        ""
        if failure.certificate == certificate
        else f" (of {quoted(subject_of(failure.certificate))})"
    )


def quoted(text: str) -> str:
    """The text in quotation marks."""
    return f'"{text}"'


def day(instant: datetime) -> str:
    """A date and time for people."""
    return f"{instant:%Y-%m-%d %H:%M} UTC"


def days(duration: timedelta) -> str:
    """A duration for people."""
    hours = int(duration.total_seconds() // 3600)
    return f"{hours // 24} days" if hours >= 48 else f"{hours} hours"
