"""When a file of CAs is valid: an intermediate needs its root, gaps count."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes

from relay.demo.ca import Authority, _builder, _ca_extensions
from relay.tls.certificates.validity import period_of_cas
from relay.tls.trust_store import valid_until
from tests.support.pki import parsed

NOW = datetime.now(UTC)
PAST = {"not_before": NOW - timedelta(days=60), "not_after": NOW - timedelta(days=1)}
FUTURE = {"not_before": NOW + timedelta(days=1), "not_after": NOW + timedelta(days=60)}
GOOD = {"not_before": NOW - timedelta(days=1), "not_after": NOW + timedelta(days=30)}


def why_invalid(*authorities, days=0):
    """Why a file with these CAs is not valid this many days from now; "" if it is."""
    cas = [parsed(each.certificate) for each in authorities]
    period = period_of_cas("client_ca", Path("ca.pem"), cas, NOW)
    return period.why_invalid((NOW + timedelta(days=days)).timestamp())


def below(dates_of_root, **dates):
    root = Authority.root("Root", **dates_of_root)
    return root, root.intermediate("Issuing", **dates)


def cross_sign(above, below):
    """A certificate with one CA's name and key, issued by another CA."""
    issuer, subject = above.certificate.subject, below.certificate.subject
    builder = _builder(subject, issuer, below.key, None, None)
    return _ca_extensions(builder, below.key, above.key).sign(above.key, hashes.SHA256())


CASES = {
    "expired, and its successor is not valid yet": (
        lambda: [Authority.root("Old", **PAST), Authority.root("New", **FUTURE)],
        "is not valid before",
    ),
    "good intermediate of an expired root": (lambda: below(PAST, **GOOD), "CN=Root) expired"),
    "good intermediate of a future root": (lambda: below(FUTURE, **GOOD), "is not valid before"),
    "expired intermediate of a good root": (lambda: below(GOOD, **PAST), ""),
    "expired beside good": (
        lambda: [Authority.root("Old", **PAST), Authority.root("New", **GOOD)],
        "",
    ),
    "expired": (lambda: [Authority.root("Old", **PAST)], "expired on"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_ca_file_is_valid_while_a_whole_path_is(case):
    make, words = CASES[case]
    said = why_invalid(*make())
    assert (words in said) if words else said == ""


def test_a_gap_between_two_cas_is_a_time_without_any():
    soon = {"not_before": NOW - timedelta(days=9), "not_after": NOW + timedelta(days=1)}
    later = {"not_before": NOW + timedelta(days=3), "not_after": NOW + timedelta(days=60)}
    cas = [Authority.root("Soon", **soon), Authority.root("Later", **later)]
    assert why_invalid(*cas) == ""
    assert "expired on" in why_invalid(*cas, days=2)


def test_cas_that_follow_each_other_leave_no_gap():
    first = {"not_before": NOW - timedelta(days=9), "not_after": NOW + timedelta(days=2)}
    second = {"not_before": NOW + timedelta(days=1), "not_after": NOW + timedelta(days=60)}
    cas = [Authority.root("Second", **second), Authority.root("First", **first)]
    assert [why_invalid(*cas, days=days) for days in (0, 1, 2, 3, 59)] == [""] * 5


def test_a_path_of_a_thousand_cas_takes_no_time():
    deep = [Authority.root("Root")]
    for number in range(1200):
        deep.append(deep[-1].intermediate(f"CA {number}"))
    chain = [parsed(each.certificate) for each in deep]
    begun = time.process_time()
    assert len(valid_until(reversed(chain))) == len(chain)
    assert period_of_cas("client_ca", Path("ca.pem"), chain, NOW).why_invalid(NOW.timestamp()) == ""
    assert time.process_time() - begun < 3


def test_a_mesh_of_cas_that_vouch_for_each_other_takes_no_time():
    names = [f"CA {number}" for number in range(12)]
    keys = {name: Authority.root(name) for name in names}
    mesh = [parsed(cross_sign(keys[above], keys[below])) for above in names for below in names]
    begun = time.process_time()
    assert len(valid_until(mesh)) == len(names)
    assert time.process_time() - begun < 1
