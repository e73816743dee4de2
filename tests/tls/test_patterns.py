"""The patterns of `allow`: which names of a certificate a star matches."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.tls.access_rules import compile_rules
from tests.support.handshakes import allow
from tests.support.identities import ALICE


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("*.corp", "a.b.corp", False),
        ("*.corp", ".corp", False),
        ("*.corp", "corp", False),
        ("*.corp", "a.corp.evil", False),
        ("*.corp", "a.corp\n", False),
        ("a.corp", "axcorp", False),
        ("*.corp", "*.corp", False),  # a star in the certificate is not a pattern, and not a label
        ("*.corp", "a\0.corp", False),
        ("*.corp", "a b.corp", False),
        ("*.corp", "-a.corp", False),
        ("*.corp", "a-.corp", False),
        ("*.corp", "a_b.corp", False),
        ("*.corp", "a/b.corp", False),
        ("*.corp", f"{'a' * 64}.corp", False),
        ("*.corp", f"{'a' * 63}.corp", True),
        ("*.corp", "bücher.corp", False),
        ("*.corp", "a.corp.", False),
        ("*.corp", "xn--bcher-kva.CORP", True),
        ("*.kelvin", "a.\u212aelvin", False),  # the lower case of this character is a k
        ("a_b.corp", "A_B.corp", True),
        ("a.corp", "*.corp", False),
        ("a.corp", "a.corp\0.evil", False),
    ],
)
def test_a_wildcard_name_is_exactly_one_label(pattern, name, matches):
    assert (
        compile_rules(allow(san_dns=(pattern,))).allow(replace(ALICE, san_dns=(name,))) is matches
    )


@pytest.mark.parametrize(
    ("pattern", "uri", "matches"),
    [
        ("spiffe://corp/*/db", "spiffe://corp/ns/db", True),
        ("spiffe://corp/*/db", "spiffe://corp/ns/sa/db", False),
        ("spiffe://corp/**/db", "spiffe://corp/ns/sa/db", True),
        ("spiffe://corp/**", "spiffe://corp.evil/x", False),
        ("spiffe://corp/**", "spiffe://corp/", True),
        ("spiffe://corp/*", "spiffe://corp/a\n", False),
        ("spiffe://corp/*", "spiffe://corp/", False),
        ("spiffe://corp/*/db", "spiffe://corp//db", False),
        ("spiffe://corp/*", "spiffe://corp/.", False),
        ("spiffe://corp/*", "spiffe://corp/..", False),
        ("spiffe://corp/.*", "spiffe://corp/..", False),
        ("spiffe://corp/*", "spiffe://corp/...", True),
        ("spiffe://corp/*", "spiffe://corp/.a", True),
        ("spiffe://corp/*", "spiffe://corp/a%2fb", False),
        ("spiffe://corp/*", "spiffe://corp/%2e%2e", False),
        ("spiffe://corp/*", "spiffe://corp/a?b", False),
        ("spiffe://corp/*", "spiffe://corp/a#b", False),
        ("spiffe://corp/*", "spiffe://corp/a\0", False),
        ("spiffe://corp/*", "spiffe://corp/a b", False),
        ("spiffe://corp/*", "spiffe://corp/a\\..", False),
        ("spiffe://corp/*", "spiffe://corp/*", True),  # an ordinary character (RFC 3986)
        ("spiffe://corp/a", "spiffe://corp/*", False),
        ("spiffe://corp/web-*", "spiffe://corp/web-1", True),
        ("spiffe://corp/web-*", "spiffe://corp/web-", False),
        ("spiffe://corp/web-*", "spiffe://corp/web-a%2f", False),
        ("spiffe://corp/*-*-z", "spiffe://corp/a-b-c-z", True),
        ("spiffe://corp/*-*-z", "spiffe://corp/a--z", False),
        ("spiffe://corp/a*a", "spiffe://corp/a", False),
        ("spiffe://corp/**", "spiffe://corp", False),
        ("spiffe://corp/**", "spiffe://corp/a/b/", False),
        ("spiffe://corp/**", "spiffe://corp/a//b", False),
        ("spiffe://corp/**", "spiffe://corp/a/../b", False),
        ("spiffe://corp/**", "spiffe://corp/a/%2e%2e/b", False),
        ("spiffe://corp/**", "spiffe://corp/a?b", False),
        ("spiffe://corp/**/db", "spiffe://corp/db", False),
        ("spiffe://corp/**/db", "spiffe://corp/db/db", True),
        ("spiffe://corp/**/db/**", "spiffe://corp/a/db/b/db/c", True),
        ("spiffe://corp/**/db/*", "spiffe://corp/a/db/b/c/db/d", True),
        ("spiffe://corp/a?b/*", "spiffe://corp/a?b/c", True),  # matches literally
        ("spiffe://c.rp/*", "spiffe://corp/a", False),
        ("spiffe://corp/a", "spiffe://corp/a/b", False),
        ("spiffe://corp/[ab]", "spiffe://corp/a", False),
    ],
)
def test_one_star_is_one_segment_and_two_are_several(pattern, uri, matches):
    assert compile_rules(allow(san_uri=(pattern,))).allow(replace(ALICE, san_uri=(uri,))) is matches


def test_a_hostile_name_is_matched_in_linear_time():
    """A name with as many segments as fit into a certificate, and many stars."""
    rules = compile_rules(allow(san_uri=("spiffe:" + "/**/a" * 8 + "/end", "x/" + "*a" * 9 + "z")))
    begin = time.process_time()
    assert not rules.allow(replace(ALICE, san_uri=("spiffe:" + "/a" * 16_000, "x/" + "a" * 32_000)))
    assert time.process_time() - begin < 2


@given(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30))
def test_a_pattern_without_stars_matches_only_itself(pattern, name):
    pattern = pattern.replace("*", "x").strip() or "x"  # a configuration is stripped
    rules = compile_rules(allow(san_uri=(pattern,)))
    assert rules.allow(replace(ALICE, san_uri=(pattern,)))
    assert rules.allow(replace(ALICE, san_uri=(name,))) is (name == pattern)
