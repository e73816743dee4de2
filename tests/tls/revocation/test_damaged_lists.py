"""Damaged lists end with a reason, whatever the bytes are."""

from __future__ import annotations

from datetime import timedelta

from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from relay.demo.ca import Authority
from relay.tls.revocation.crl import check_date, entries_of, find_signer, parse_list, parse_lists
from relay.tls.revocation.fields import CrlError
from tests.support.crls import COMPROMISED, make_crl, to_pem
from tests.support.pki import parsed

ROOT = Authority.root("Root")
CAS = [parsed(ROOT.certificate)]
NEXT_PUBLISH = x509.UnrecognizedExtension(
    x509.ObjectIdentifier("1.3.6.1.4.1.311.21.4"), b"\x17\x0d261201120000Z"
)
GOOD = make_crl(
    ROOT,
    [1, (300, COMPROMISED), 2**127],
    number=7,
    base=3,
    scope={"uris": ("http://a/1",), "only_contains_user_certs": True},
    extensions=[(NEXT_PUBLISH, False)],
)
# Where DER has lengths and tags, small changes matter most.
PLACES = st.integers(0, len(GOOD) - 1)


def why_refused(der, now_at=4e9):
    """What is wrong with a list that is used; None if nothing is."""
    try:
        crl = parse_list("a.crl", der)
        check_date(crl, now_at)
        list(entries_of(crl))
        find_signer(crl, CAS)
    except CrlError as error:
        return error
    # Only what the signature does not cover may differ.
    assert crl.der[slice(*crl.fields.signed)] in GOOD
    return None


def is_for_people(error):
    return error is None or (error.what.isprintable() and error.remedy.isprintable())


@given(st.lists(st.tuples(PLACES, st.integers(0, 255)), min_size=1, max_size=3))
def test_changed_bytes_are_refused_with_a_reason(changes):
    der = bytearray(GOOD)
    for at, value in changes:
        der[at] = value
    for now_at in (0.0, 4e9):
        assert is_for_people(why_refused(bytes(der), now_at))


@given(PLACES, PLACES)
def test_missing_bytes_are_refused_with_a_reason(first, last):
    der = GOOD[: min(first, last)] + GOOD[max(first, last) :]
    error = why_refused(der)
    assert is_for_people(error)
    assert (error is None) is (der == GOOD)


@given(st.binary(max_size=200), st.sampled_from([b"", b"0\x82", to_pem(GOOD)[:60]]))
def test_any_bytes_are_refused_with_a_reason(data, head):
    problems = []
    assert parse_lists("here", "a.crl", head + data, problems) == []
    assert problems
    assert all(str(each).isprintable() for each in problems)


def test_dates_at_the_end_of_time_are_read():
    crl = parse_list("a.crl", make_crl(ROOT, lasts=timedelta(days=365 * 7900)))
    assert crl.next_update > 2.4e11
