"""The buffer of revoked certificates: membership, sentences, damaged buffers."""

import mmap
import tempfile
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.shared.sealed_memory import map_bytes
from relay.tls.revocation.distribution_points import Scope
from relay.tls.revocation.fields import RevokedEntry
from relay.tls.revocation.revoked_set import ListInfo, RevokedSet, build, pack, shared_set

KEY, OTHER = b"k" * 32, b"o" * 32
DAY = 20783  # 2026-11-26


COMPLETE = Scope()


def info(key=KEY, number=17, source="root.crl", scope=COMPLETE):
    return ListInfo(key, "CN=Root", number, 1.0, 2.0, scope, source)


def made(entries, key=KEY, **differences):
    return info(key, **differences), pack(key, [RevokedEntry(*entry) for entry in entries])


SERIALS = st.sets(st.binary(min_size=1, max_size=20), max_size=200)


@given(ours=SERIALS, theirs=SERIALS, tried=SERIALS)
def test_a_certificate_is_found_if_and_only_if_it_is_revoked(ours, theirs, tried):
    lists = [
        made([(serial, DAY, 1) for serial in ours]),
        made([(serial, DAY, 1) for serial in theirs], OTHER),
    ]
    revoked = RevokedSet(build(lists))
    assert len(revoked) == len(ours) + len(theirs)
    for serial in ours | theirs | tried:
        assert (revoked.find(KEY, serial) is not None) is (serial in ours)
        assert (revoked.find(OTHER, serial) is not None) is (serial in theirs)


@given(st.lists(SERIALS, min_size=1, max_size=4))
def test_the_entries_of_each_list_come_out_as_they_went_in(lists):
    packed = [made([(serial, DAY, 1) for serial in each]) for each in lists]
    revoked = RevokedSet(build(packed))
    found = revoked.packed(range(len(lists)))
    assert found.keys() == set(range(len(lists)))
    for index, (_, expected) in enumerate(packed):
        assert found[index].entries == sorted(expected.entries)
    assert revoked.packed([]) == {}


@given(
    st.dictionaries(
        st.binary(min_size=1, max_size=20),
        st.tuples(st.integers(0, 0xFFFF), st.sampled_from([0, 1, 2, 3, 4, 5, 6, 9, 10])),
        max_size=50,
    )
)
def test_an_entry_keeps_its_day_reason_and_list(entries):
    split = [
        made([(s, *e) for s, e in entries.items() if s[0] % 3 == n], source=f"{n}.crl")
        for n in range(3)
    ]
    revoked = RevokedSet(build(split))
    for serial, (day, reason) in entries.items():
        entry = revoked.find(KEY, serial)
        [expected] = RevokedSet(build([made([(serial, day, reason)])])).lists
        alone = RevokedSet(build([made([(serial, day, reason)])])).find(KEY, serial)
        assert (entry.day, entry.reason) == (alone.day, alone.reason)
        assert entry.source.source == f"{serial[0] % 3}.crl"
        assert expected.entries == 1


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ((b"\1", DAY, 1), 'revoked 2026-11-26 (key compromise), CRL 17 of "CN=Root" from root.crl'),
        ((b"\1", DAY, 0), 'revoked 2026-11-26, CRL 17 of "CN=Root" from root.crl'),
        ((b"\1", 0, 6), 'revoked (certificate hold), CRL 17 of "CN=Root" from root.crl'),
    ],
)
def test_an_entry_says_when_why_and_which_list(entry, sentence):
    assert RevokedSet(build([made([entry])])).find(KEY, b"\1").sentence == sentence


def test_lists_are_found_by_their_key():
    shard = Scope(("http://a/1",), "user")
    buffer = build([made([], scope=shard), made([(b"\1", 1, 1)], OTHER, number=None)])
    revoked = RevokedSet(buffer)
    [first] = revoked.lists_of(KEY)
    assert first == info(scope=shard)
    [second] = revoked.lists_of(OTHER)
    assert (second.number, second.entries) == (None, 1)
    assert second.name == 'CRL of "CN=Root" from root.crl'
    assert revoked.lists_of(b"x" * 32) == ()


def test_an_empty_set_finds_nobody():
    revoked = RevokedSet(build([]))
    assert (len(revoked), revoked.lists, revoked.find(KEY, b"\1")) == (0, (), None)


def test_the_set_is_read_from_shared_memory():
    buffer = build([made([(bytes((n,)), DAY, 1) for n in range(100)])])
    with tempfile.TemporaryFile() as file:
        file.write(buffer)
        file.flush()
        revoked = RevokedSet(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    assert all(revoked.find(KEY, bytes((n,))) for n in range(100))
    assert not revoked.find(KEY, b"\x70")


GOOD = build([made([(bytes((n,)), DAY, 1) for n in range(9)])])


@given(st.binary(max_size=300))
def test_foreign_bytes_are_refused(data):
    with pytest.raises(ValueError, match="set of revoked certificates"):
        RevokedSet(data)


@given(st.integers(0, len(GOOD) - 1))
def test_a_truncated_buffer_is_refused(size):
    with pytest.raises(ValueError, match="set of revoked certificates"):
        RevokedSet(GOOD[:size])


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_damaged_buffer_is_refused_or_answers(at, change):
    data = bytearray(GOOD)
    data[at] ^= change
    try:
        revoked = RevokedSet(bytes(data))
    except ValueError:
        return
    for n in range(12):
        entry = revoked.find(KEY, bytes((n,)))
        assert entry is None or entry.sentence.startswith("revoked")


@pytest.mark.serial
def test_a_process_takes_a_large_set_over_at_once():
    """No handshake waits: what it costs does not depend on the number of entries."""
    entries = ((number.to_bytes(16), DAY, 1) for number in range(300_000))
    made_set = shared_set("test", build([made(entries)]))

    def taking():
        before = time.process_time()
        revoked = RevokedSet(map_bytes(made_set.memory.fd))
        assert revoked.find(KEY, (5).to_bytes(16))
        return time.process_time() - before

    assert min(taking() for _ in range(5)) < 0.002
