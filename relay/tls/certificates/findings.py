"""What is said of a certificate: a value per fact, and the words that all of them share.

Never: judges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from relay.errors import Problem
from relay.tls.certificates.certificate import Certificate
from relay.tls.certificates.extensions import subject_of
from relay.tls.certificates.openssl import VerifyFailure
from relay.tls.certificates.pem import name_of

SOON = timedelta(days=30)
REISSUE = "have it issued anew, with each extension once and in its standard form (RFC 5280, 4.2)"

Certificates = tuple[Certificate, ...]


class Level(StrEnum):
    """What a finding means: an ERROR is refused by start and reload, a WARNING is worth an operator's time, an INFO is for the table."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found: about which certificate of which file, where the configuration names it (several places are joined by commas), what to do.

    `file` and `subject` are empty where a file could not be read or parsed; `what` names the file then.
    """

    level: Level
    file: str
    subject: str
    what: str
    remedy: str
    where: str
    temporary: bool = False
    """It comes or goes with time: start and reload disable only what uses it."""


def file_finding(problem: Problem) -> Finding:
    """A file that cannot be used, as a finding."""
    return Finding(Level.ERROR, "", "", problem.what, problem.remedy, problem.where)


def merge_findings(findings: Iterable[Finding]) -> list[Finding]:
    """The same file used in several places is one finding with several places."""
    places: dict[tuple[Level, str, str, str, str, bool], dict[str, None]] = {}
    for one in findings:
        key = (one.level, one.file, one.subject, one.what, one.remedy, one.temporary)
        places.setdefault(key, {})[one.where] = None
    found = [Finding(*key[:5], ", ".join(wheres), key[5]) for key, wheres in places.items()]
    return sorted(found, key=lambda finding: list(Level).index(finding.level))


def fine(
    said: Iterable[Finding], where: str, file: str, certificates: Certificates
) -> Iterator[Finding]:
    """One INFO line for each certificate that nothing worse was said of."""
    blamed = {finding.subject for finding in said if finding.level is not Level.INFO}
    for certificate in certificates:
        if subject_of(certificate) not in blamed:
            what = f"valid until {day(certificate.not_valid_after_utc)}, issued by {quoted(name_of(certificate.issuer))}"
            yield Finding(Level.INFO, file, subject_of(certificate), what, "", where)


def dates(certificate: Certificate, now: datetime) -> Iterator[tuple[Level, str, str]]:
    """What is wrong with its dates: level, what, remedy."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        yield Level.ERROR, f"expired on {day(end)}, {days(now - end)} ago", "renew it, and reload"
    elif now < begin:
        yield (
            Level.ERROR,
            f"is not valid before {day(begin)}, {days(begin - now)} from now",
            "compare this machine's clock with that of its CA, or have it issued anew",
        )
    elif end - now < SOON:
        yield Level.WARNING, f"expires on {day(end)}, in {days(end - now)}", "renew it, and reload"


def blame(refusal: VerifyFailure, certificate: Certificate) -> str:
    """Which certificate a refusal is about, when it is another one."""
    return (
        ""
        if refusal.certificate == certificate
        else f" (of {quoted(subject_of(refusal.certificate))})"
    )


def quoted(text: str) -> str:
    """In quotation marks."""
    return f'"{text}"'


def day(instant: datetime) -> str:
    """An instant for people."""
    return f"{instant:%Y-%m-%d %H:%M} UTC"


def days(span: timedelta) -> str:
    """A span for people."""
    hours = int(span.total_seconds() // 3600)
    return f"{hours // 24} days" if hours >= 48 else f"{hours} hours"
