"""The cache gives the result that parsing would give, byte for byte."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core import hello_cache
from relay.core.hello import NEED_DATA, Hello, Malformed, parse_hello
from relay.core.hello_cache import MAX_HELLOS, MAX_MISSES, HelloCache
from tests.support.hellos import HELLOS, extension, hello, records, server_name, versions

KEY_SHARE, PRE_SHARED_KEY = 51, 41


@pytest.fixture
def read(monkeypatch):
    """Counts the hellos that are really read."""
    seen = []

    def parse(data):
        seen.append(data)
        return parse_hello(data)

    monkeypatch.setattr(hello_cache, "parse_hello", parse)
    return seen


def again(data, chance):
    """The next hello of the same client: another random, another session id."""
    other = bytearray(data)
    other[11:43] = chance.randbytes(32)
    other[44 : 44 + data[43]] = chance.randbytes(data[43])
    return bytes(other)


@pytest.mark.parametrize("name", HELLOS)
def test_the_next_hello_of_a_client_comes_from_the_cache(name, read):
    data, hellos, chance = HELLOS[name], HelloCache(), random.Random(name)
    first = hellos.parse(data)
    for _ in range(5):
        assert hellos.parse(again(data, chance)) == first == parse_hello(data)
    assert len(read) == 1


@pytest.mark.parametrize("name", HELLOS)
def test_a_hello_that_differs_in_one_byte_gets_its_own_answer(name):
    data, hellos = HELLOS[name], HelloCache()
    hellos.parse(data)
    for at in range(len(data)):
        for change in (1, 0x80):
            other = bytearray(data)
            other[at] ^= change
            assert hellos.parse(bytes(other)) == parse_hello(bytes(other)), f"byte {at}"
            hellos.parse(data)  # nothing that was read in between is taken for this one


@settings(max_examples=300)
@given(data=st.data())
def test_hellos_of_equal_and_other_sizes_are_not_mixed_up(data):
    """Extensions of equal length in any order, two names, and a body that hides one."""
    hidden = server_name(b"hidden.example")
    rest = [
        extension(KEY_SHARE, hidden),
        extension(21, hidden),
        extension(PRE_SHARED_KEY, hidden),
        versions(0x0304),
    ]
    hellos = HelloCache()
    for name in data.draw(
        st.lists(st.sampled_from([b"a.example.com", b"b.example.com"]), min_size=2, max_size=8)
    ):
        sent = hello(*data.draw(st.permutations([server_name(name), *rest])))
        assert hellos.parse(sent) == parse_hello(sent)


@pytest.mark.parametrize("kind", [KEY_SHARE, PRE_SHARED_KEY])
def test_no_hello_can_get_the_cached_name_of_another(kind):
    # Its key share lies where other hellos of that size have their server name.
    ours, theirs = (hello(server_name(name)) for name in (b"a.example.com", b"b.example.com"))
    covering = hello(extension(kind, bytes(len(server_name(b"a.example.com")) - 4)))
    assert len(covering) == len(ours) == len(theirs)
    for order in itertools.permutations((covering, ours, theirs)):
        hellos = HelloCache()
        for sent in order * 2:
            assert hellos.parse(sent) == parse_hello(sent)


def test_names_of_the_same_length_are_told_apart(read):
    hellos = HelloCache()
    sent = [hello(server_name(b"%02d.example.com" % number)) for number in range(10)]
    for _ in range(3):
        assert [hellos.parse(each).sni for each in sent] == [
            f"{number:02d}.example.com" for number in range(10)
        ]
    assert len(read) == 10


def test_a_size_that_always_misses_is_not_cached_any_more(read):
    hellos = HelloCache()
    for number in range(2 * MAX_MISSES + MAX_HELLOS):
        sent = hello(server_name(b"%04d.example.com" % number))
        assert hellos.parse(sent) == Hello(f"{number:04d}.example.com", ())
    kept = [len(shape.hellos) for shape in hellos._sizes.values()]
    assert kept == [0]


def test_the_number_of_cached_sizes_is_bounded():
    hellos = HelloCache()
    for size in range(3 * hello_cache.MAX_SIZES):
        hellos.parse(hello(extension(21, bytes(size))))
    assert len(hellos._sizes) <= hello_cache.MAX_SIZES


def test_the_cache_answers_for_other_bytes_as_the_parser():
    hellos, data = HelloCache(), HELLOS["python_ssl"]
    hellos.parse(data)
    assert hellos.parse(data[:-1]) is NEED_DATA
    assert hellos.parse(data + b"more") == parse_hello(data)
    assert hellos.parse(b"") is NEED_DATA
    assert isinstance(hellos.parse(b"GET / HTTP/1.1\r\n\r\n"), Malformed)
    assert hellos.parse(records(data[5:], [100, 100])) == parse_hello(data)
