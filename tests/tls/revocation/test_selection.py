"""Which of several lists count, deltas, and lists that go back."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from relay.demo.ca import Authority
from relay.tls.revocation.crl import entries_of, key_id
from relay.tls.revocation.revoked_set import RevokedSet, build, pack
from relay.tls.revocation.selection import accepted_of, select
from tests.support.crls import COMPROMISED, HOLD, REMOVED, listed, serial_of, with_name
from tests.support.pki import parsed

ROOT = Authority.root("Root")
NAMESAKE = Authority.root("Root")
OTHER = Authority.root("Other")
CAS = [parsed(each.certificate) for each in (ROOT, NAMESAKE)]
KEYS = [key_id(each.spki) for each in CAS]
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0")


def chosen(*lists, cas=CAS, accepted=None, **more):
    return select(
        lists,
        cas,
        datetime.now(UTC).timestamp(),
        lambda crl, key: pack(key, entries_of(crl)),
        accepted,
        **more,
    )


def found_in(selection, serial, key=KEYS[0]):
    return RevokedSet(build(selection.lists)).find(key, serial_of(serial))


def sentences(found):
    return " ".join(each.what for each in found)


def test_entries_count_for_the_key_that_signed_them():
    selection = chosen(listed(ROOT, 5), listed(NAMESAKE, 6))
    assert selection.errors == []
    assert found_in(selection, 5)
    assert not found_in(selection, 6)
    assert found_in(selection, 6, KEYS[1])
    assert not found_in(selection, 5, KEYS[1])


def test_the_newest_list_counts_in_any_order():
    old, new = listed(ROOT, 5, number=1), listed(ROOT, 6, number=2)
    for lists in ((old, new), (new, old)):
        selection = chosen(*lists)
        assert selection.errors == []
        assert "CRL 1 of" in sentences(selection.unused)
        assert found_in(selection, 6)
        assert not found_in(selection, 5)


def test_shards_and_complete_lists_count_together():
    shards = [listed(ROOT, n, number=n, scope={"uris": (f"http://a/{n}",)}) for n in (1, 2, 3)]
    selection = chosen(*shards, listed(ROOT, 4, number=1))
    assert (selection.errors, selection.unused) == ([], [])
    assert all(found_in(selection, n) for n in (1, 2, 3, 4))
    lists = RevokedSet(build(selection.lists)).lists_of(KEYS[0])
    assert {each.scope.uris for each in lists} == {(f"http://a/{n}",) for n in (1, 2, 3)} | {()}


def test_a_list_of_a_foreign_ca_is_unused():
    selection = chosen(listed(OTHER, 5), listed(ROOT, 6))
    assert selection.errors == []
    assert "belongs to no CA" in sentences(selection.unused)
    assert len(selection.lists) == 1


@pytest.mark.parametrize(
    ("crl", "sentence"),
    [
        (listed(ROOT, signer=OTHER.key), "was not signed by this CA"),
        (listed(ROOT, age=timedelta(hours=-1)), "was issued in the future"),
        (listed(ROOT, 1, base=1, number=2), "there is no complete list of this CA"),
    ],
)
def test_a_list_that_cannot_be_used_is_an_error(crl, sentence):
    selection = chosen(crl)
    assert selection.lists == []
    assert sentence in sentences(selection.errors)


def test_a_delta_adds_and_takes_out():
    complete = listed(ROOT, (1, HOLD), 2, (3, HOLD), number=4)
    delta = listed(ROOT, (1, REMOVED), (3, COMPROMISED), 9, number=6, base=4)
    selection = chosen(delta, complete)
    assert selection.errors == []
    assert not found_in(selection, 1)
    assert found_in(selection, 2).reason == "unspecified"
    assert found_in(selection, 3).reason == "key compromise"
    entry = found_in(selection, 9)
    assert entry.source.number == 6
    assert entry.source.delta == 6
    assert entry.source.entries == 3


def test_the_newest_delta_counts():
    complete = listed(ROOT, number=4)
    older = listed(ROOT, (1, HOLD), number=5, base=4)
    newer = listed(ROOT, (1, REMOVED), 2, number=6, base=4)
    selection = chosen(complete, newer, older)
    assert "delta CRL 5" in sentences(selection.unused)
    assert not found_in(selection, 1)
    assert found_in(selection, 2)


def test_a_delta_for_a_newer_complete_list_is_an_error():
    selection = chosen(listed(ROOT, number=4), listed(ROOT, 1, number=9, base=5))
    assert "it needs the complete list of number 5 or later" in sentences(selection.errors)
    assert selection.lists == []


def test_a_delta_older_than_the_complete_list_is_unused():
    selection = chosen(listed(ROOT, number=9), listed(ROOT, 1, number=8, base=5))
    assert selection.errors == []
    assert "delta CRL 8" in sentences(selection.unused)
    assert not found_in(selection, 1)


def test_a_delta_of_another_scope_does_not_fit():
    delta = listed(ROOT, 1, number=9, base=4, scope={"uris": ("http://a/1",)})
    selection = chosen(listed(ROOT, number=4), delta)
    assert "there is no complete list" in sentences(selection.errors)


def test_a_delta_for_a_list_without_a_number_is_an_error():
    selection = chosen(listed(ROOT, number=None), listed(ROOT, 1, number=9, base=4))
    assert "has no number" in sentences(selection.errors)


HOURS = [timedelta(hours=n) for n in range(4)]


@pytest.mark.parametrize(
    ("number", "age", "sentence"),
    [
        (4, HOURS[1], "the list in use has the number 5"),
        (4, HOURS[3], "the list in use has the number 5"),
        (5, HOURS[3], "and the list in use on"),
        (6, HOURS[3], "and the list in use on"),
        (None, HOURS[3], "and the list in use on"),
        (5, HOURS[2], ""),
        (6, HOURS[1], ""),
    ],
)
def test_a_list_that_goes_back_is_an_error(number, age, sentence):
    before = chosen(listed(ROOT, number=5, age=HOURS[2]))
    accepted = accepted_of(info for info, _ in before.lists)
    after = chosen(listed(ROOT, number=number, age=age), accepted=accepted)
    assert sentence in sentences(after.errors)
    assert bool(after.errors) is bool(sentence)


def test_a_delta_that_disappears_is_an_error():
    complete, delta = listed(ROOT, number=4), listed(ROOT, 1, number=6, base=4)
    accepted = accepted_of(info for info, _ in chosen(complete, delta).lists)
    assert "has the number 6" in sentences(chosen(complete, accepted=accepted).errors)
    assert chosen(listed(ROOT, 1, number=7), accepted=accepted).errors == []


def test_a_removal_in_a_complete_list_revokes_nobody():
    selection = chosen(listed(ROOT, (1, REMOVED), 2))
    assert not found_in(selection, 1)
    assert found_in(selection, 2)


def accepted_by(*lists):
    return accepted_of(info for info, _ in chosen(*lists).lists)


def shard(which, **how):
    return listed(ROOT, scope={"uris": (f"http://a/{which}",)}, **how)


def test_a_shard_that_vanishes_is_an_error():
    accepted = accepted_by(shard(1), shard(2))
    assert "no list has taken its place" in sentences(chosen(shard(2), accepted=accepted).errors)


@pytest.mark.parametrize("shards", [(), (3, 4), (2, 3)])
def test_a_ca_may_split_its_lists_in_another_way(shards):
    accepted = accepted_by(shard(1), shard(2))
    lists = map(shard, shards) if shards else [listed(ROOT)]
    assert chosen(*lists, accepted=accepted).errors == []


def test_a_ca_that_kept_its_key_has_lists_of_both_names():
    renamed = with_name(ROOT, "Renamed")
    cas = [CAS[0], parsed(renamed.certificate)]
    lists = (listed(ROOT, 5, number=9), listed(renamed, 6, number=2))
    for each in (lists, lists[::-1]):
        selection = chosen(*each, cas=cas)
        assert (selection.errors, selection.unused) == ([], [])
        assert found_in(selection, 5)
        assert found_in(selection, 6)
    accepted = accepted_of(info for info, _ in selection.lists)
    assert chosen(*lists, cas=cas, accepted=accepted).errors == []
    assert "no list has taken its place" in sentences(
        chosen(lists[0], cas=cas, accepted=accepted).errors
    )


USERS, ONLY_CAS = ({f"only_contains_{which}_certs": True} for which in ("user", "ca"))


@pytest.mark.parametrize("before", [{}, USERS], ids=["all", "users"])
def test_a_list_of_other_certificates_takes_no_ones_place(before):
    """A CA may publish both: one must not hide the other's revocations."""
    accepted = accepted_by(listed(ROOT, 5, **({"scope": before} if before else {})))
    of_cas = listed(ROOT, number=9, scope=ONLY_CAS)
    assert "no list has taken its place" in sentences(chosen(of_cas, accepted=accepted).errors)
    both = (of_cas, listed(ROOT, number=9, scope={"uris": ("http://a/1",), **USERS}))
    assert chosen(*both, accepted=accepted).errors == []


def test_a_fetched_list_that_goes_back_leaves_the_set_in_use():
    accepted = accepted_by(shard(1, number=5), shard(2))
    found = select(
        [shard(2)],
        CAS,
        datetime.now(UTC).timestamp(),
        lambda crl, key: pack(key, entries_of(crl)),
        accepted,
        fetched=[shard(1, number=4)],
    )
    assert "has the number 5" in sentences(found.errors)


def in_use(*lists):
    return RevokedSet(build(chosen(*lists).lists))


SPLIT = [listed(NAMESAKE, 9, number=n, scope={"uris": (f"http://a/{n}",)}) for n in (4, 5)]
BAD = {
    "older": [listed(NAMESAKE, number=1)],
    "forged": [listed(NAMESAKE, number=9, signer=OTHER.key)],
    "of the future": [listed(NAMESAKE, number=9, age=timedelta(hours=-1))],
    "gone": [],
    "a delta alone": [listed(NAMESAKE, number=9, base=7)],
    "strange entries": [listed(NAMESAKE, 1, number=9, entry_extensions=[(UNKNOWN, True)])],
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_list_does_not_hold_up_another_cas(bad):
    """What it would have replaced stays, and the newer list of the other CA counts."""
    before = in_use(listed(ROOT, 5), listed(NAMESAKE, 6, 7, number=3))
    found = chosen(listed(ROOT, 8, number=2), *bad, in_use=before)
    assert found.errors
    assert found.is_partial
    assert found_in(found, 8)
    assert not found_in(found, 5)
    assert all(found_in(found, n, KEYS[1]) for n in (6, 7))
    [kept] = RevokedSet(build(found.lists)).lists_of(KEYS[1])
    assert (kept.number, kept.entries) == (3, 2)
    again = chosen(listed(ROOT, 8, number=2), *bad, in_use=RevokedSet(build(found.lists)))
    assert again.errors
    assert not again.is_partial, "nothing is newer than what is in use now"


def test_a_file_that_cannot_be_read_holds_up_no_other():
    before = in_use(listed(ROOT, 5), listed(NAMESAKE, 6))
    found = chosen(listed(ROOT, 8, number=2), in_use=before, unread=True)
    assert found.is_partial
    assert found.errors == [], "why the file cannot be read is told, and not what follows"
    assert found_in(found, 8)
    assert found_in(found, 6, KEYS[1])


def test_a_ca_that_is_gone_keeps_no_list_in_a_partial_set():
    before = in_use(listed(ROOT, 5), listed(NAMESAKE, 6))
    found = chosen(listed(ROOT, 8, number=2), cas=CAS[:1], in_use=before, unread=True)
    assert found.is_partial
    assert not found_in(found, 6, KEYS[1])


def test_a_new_split_counts_beside_a_bad_list_and_after_it():
    before = in_use(listed(ROOT, 5, number=5), listed(NAMESAKE, 6, number=3))
    found = chosen(listed(ROOT, number=4), *SPLIT, in_use=before)
    assert found.is_partial
    assert found_in(found, 9, KEYS[1])
    assert not found_in(found, 6, KEYS[1])
    after = chosen(listed(ROOT, number=6), *SPLIT, in_use=RevokedSet(build(found.lists)))
    assert after.errors == []
