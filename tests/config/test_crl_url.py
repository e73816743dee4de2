"""Which URLs of revocation lists are fetched."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.crl_url import CrlUrl, parse_crl_url

FETCHED = {
    "http://crl.example.com/ca.crl": ("crl.example.com", 80, "/ca.crl"),
    "HTTP://CRL.Example.COM:8080/CA.crl?a=1&b=%20": ("crl.example.com", 8080, "/CA.crl?a=1&b=%20"),
    "http://192.0.2.1": ("192.0.2.1", 80, "/"),
    "http://[2001:db8::1]:81/x": ("2001:db8::1", 81, "/x"),
    "http://crl.example.com?x": ("crl.example.com", 80, "/?x"),
}
REFUSED = {
    "": "characters beyond ASCII",
    "ca.crl": "does not start with http://",
    "/etc/ca.crl": "does not start with http://",
    "https://crl.example.com/ca.crl": "is https, and lists are fetched by http only",
    "ldap://crl.example.com/cn=CA": "does not start with http://",
    "file:///etc/shadow": "does not start with http://",
    "http:///ca.crl": "has a host that is empty",
    "http:ca.crl": "has a host that is empty",
    "http://crl.example.com:99999/": "is not a URL",
    "http://crl.example.com:0/": "has the port 0",
    "http://crl.example.com:x/": "is not a URL",
    "http://[2001:db8::1/": "is not a URL",
    "http://me:secret@crl.example.com/": "has a user name",
    "http://crl.example.com/#part": 'has a part after "#"',
    "http://crl.example.com/a b": "has spaces",
    "http://crl.example.com/\r\nHost:x": "has spaces, line breaks",
    "http://crl.exämple.com/": "characters beyond ASCII",
    "http://127.1/": "ends in a number",
    "http://0x7f000001/": "ends in a number",
    "http://crl.example.com./": "ends in a dot",
    "http://a/" + "b" * 3000: "more than 2048 characters",
}


@pytest.mark.parametrize("url", FETCHED)
def test_a_url_is_split_for_the_request(url):
    assert parse_crl_url(url) == CrlUrl(*FETCHED[url])


@pytest.mark.parametrize("url", REFUSED)
def test_other_urls_are_refused_with_a_reason(url):
    with pytest.raises(ValueError, match=r".") as caught:
        parse_crl_url(url)
    assert REFUSED[url] in str(caught.value)
    assert "secret" not in str(caught.value)


@given(st.text(max_size=40).map(lambda text: f"http://{text}"))
def test_no_text_makes_it_raise_anything_else(url):
    with contextlib.suppress(ValueError):
        found = parse_crl_url(url)
        assert found.target.startswith("/")
        assert found.target.isascii()
        assert found.target.isprintable()
