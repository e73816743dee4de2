"""Single keys of the wrong shape, in an operator's words, all at once and each once."""

from __future__ import annotations

import pytest

CASES = {
    "a number in quotes": (
        ("workers = 2", 'workers = "2"'),
        "relay.workers",
        'must be a whole number from 1 to 256 or "auto", not "2"; write it without quotes: 2',
    ),
    "a number out of bounds": (
        ("workers = 2", "workers = 0"),
        "relay.workers",
        'must be a whole number from 1 to 256 or "auto", not 0',
    ),
    "a boolean for a number": (("workers = 2", "workers = true"), "relay.workers", "not true"),
    "no time at all": (
        ("workers = 2", "drain_timeout_s = 0"),
        "relay.drain_timeout_s",
        "must be a number above 0 and at most 31536000",
    ),
    "a time that never ends": (
        ("workers = 2", "drain_timeout_s = inf"),
        "relay.drain_timeout_s",
        "not inf",
    ),
    "a time that is no number": (
        ("workers = 2", "drain_timeout_s = nan"),
        "relay.drain_timeout_s",
        "not nan",
    ),
    "a time in words": (
        ("workers = 2", 'drain_timeout_s = "30s"'),
        "relay.drain_timeout_s",
        'must be a number above 0 and at most 31536000, not "30s"',
    ),
    "a word that is not known": (
        ('access = "-"', 'level = "INFO"'),
        "log.level",
        '"debug" or "info" or "warning" or "error", not "INFO"; did you mean "info"?',
    ),
    "true for accept_proxy": (
        ('name = "https"', 'name = "https"\naccept_proxy = true'),
        "listener.https.accept_proxy",
        'must be a table, not true; write accept_proxy = { from = ["10.0.0.0/8"] }',
    ),
    "accept_proxy from nobody": (
        ('name = "https"', 'name = "https"\naccept_proxy = { from = [] }'),
        "listener.https.accept_proxy.from",
        "is empty; name the balancers that send PROXY headers",
    ),
    "accept_proxy without from": (
        ('name = "https"', 'name = "https"\naccept_proxy = {}'),
        "listener.https.accept_proxy.from",
        "is missing; name the balancers that send PROXY headers",
    ),
    "a string for a list": (
        ('["app.example.com"]', '"app.example.com"'),
        "listener.https.route[0].sni",
        'must be a list of strings, not "app.example.com"; write ["app.example.com"]',
    ),
    "a number in a list of strings": (
        ('["app.example.com"]', "[1]"),
        "listener.https.route[0].sni[0]",
        "must be a string, not 1",
    ),
    "an empty list of addresses": (
        ('["127.0.0.1:8443", "[::1]:8443"]', "[]"),
        "listener.https.listen",
        "is empty; say where to accept connections",
    ),
    "a word for a boolean": (
        ('name = "https"', 'name = "https"\nfreebind = "no"'),
        "listener.https.freebind",
        'must be true or false, not "no"; TOML\'s booleans',
    ),
    "a string for a table": (
        ('route = "w1"', 'route = "w1"\nweight = {}'),
        "pool.web.backend[0].weight",
        "must be a whole number from 1 to 256, not a table",
    ),
    "a missing route name": (
        ('route = "w1"', ""),
        "pool.web.backend[0].route",
        "is missing; give the backend a name",
    ),
    "a missing listener name": (
        ('name = "https"', ""),
        "listener[0].name",
        "is missing; give the listener a name",
    ),
    "a missing address": (
        ('address = "192.0.2.1:443"', ""),
        "pool.web.backend[0].address",
        "is missing; say where the backend is",
    ),
    "a missing pool": (
        ('pool = "rest"', ""),
        "listener.https.route[1].pool",
        "is missing; name the pool",
    ),
    "an empty file name": (
        ('"ssl/server.pem"', '""'),
        "listener.https.route[0].certificate",
        "is empty; leave the key out",
    ),
    "a pasted certificate": (
        ('"ssl/server.pem"', "'''-----BEGIN CERTIFICATE-----\nMII\n'''"),
        "listener.https.route[0].certificate",
        "do not paste its contents",
    ),
    "a key with a slip": (
        ('pool = "rest"', 'pol = "rest"'),
        "listener.https.route[1].pol",
        "unknown key; did you mean pool?",
    ),
    "a misspelt table": (
        ("[[listener]]", "[[listeners]]\n[[listeners.x]]\n[[listener]]"),
        "listeners",
        "unknown key; did you mean listener?",
    ),
    "an abbreviated key": (
        ("machine_certificate =", "machine_cert ="),
        "pool.web.machine_cert",
        "unknown key; did you mean machine_certificate?",
    ),
    "a key in the wrong section": (
        ("[admin]", "[admin]\nhello_s = 3"),
        "admin.hello_s",
        "unknown key here; it belongs in [timeouts]",
    ),
    "a key from nowhere": (
        ("[admin]", "[admin]\nxyzzy = 3"),
        "admin.xyzzy",
        "unknown key; known here: listen",
    ),
    "a key that only the model has": (
        ("[relay]", 'source = "x"\n[relay]'),
        "source",
        "unknown key here; it belongs in [pool.NAME]",
    ),
    "an odd key": (("[admin]", '[admin]\n"a b\\n" = 3'), 'admin."a b\\n"', "unknown key"),
}


@pytest.mark.parametrize(("edit", "where", "words"), CASES.values(), ids=CASES)
def test_a_wrong_shape_is_one_problem_with_what_is_accepted(problems, edit, where, words):
    (problem,) = problems(edit)
    assert problem.where == where
    assert words in f"{problem.what}; {problem.remedy}"
    assert "\n" not in str(problem)


@pytest.mark.parametrize("name", ["relay", "listener", "pool"])
def test_a_number_in_place_of_a_section_is_one_problem(problems, right, name):
    text = f"{name} = 5\n" + "\n".join(_without(right, name))
    (problem,) = problems(text=text)
    assert problem.where == name
    assert problem.what.startswith("must be ")


def _without(text: str, name: str) -> list[str]:
    kept, keep = [], True
    for line in text.splitlines():
        if line.startswith("["):
            keep = not line.strip("[]").startswith(name)
        if keep:
            kept.append(line)
    return kept


def test_a_listener_in_single_brackets_is_explained(problems, right):
    text = right.replace("[[listener]]", "[listener]")
    (problem,) = problems(text=text)
    assert problem.where == "listener"
    assert "[[…]]" in problem.what


def test_an_empty_file_says_what_a_configuration_needs(problems):
    assert [(each.where, each.what) for each in problems(text="")] == [
        ("listener", "is missing"),
        ("pool", "is missing"),
    ]


def test_two_pools_that_differ_in_spaces_are_two_pools(problems):
    (problem, unused) = problems(
        (
            "[pool.rest]",
            '[pool." web"]\nbackend = [{route = "x", address = "192.0.2.9:1"}]\n[pool.rest]',
        )
    )
    assert problem.where == unused.where == 'pool." web"'
    assert "cannot name a pool" in problem.what
    assert "no route leads" in unused.what


def test_ten_mistakes_are_ten_problems(problems):
    found = problems(
        ("workers = 2", "workers = 2\nworker = 3"),
        ('access = "-"', "access = 5"),
        ("127.0.0.1:9180", ":9180"),
        ("[::1]:8443", "::1"),
        ("app.example.com", "app.*.com"),
        ('pool = "web"', 'pool = "web"\nmin_version = "SSLv3"'),
        ('client_ca = "ssl/ca.pem"', ""),
        ('backend_ca = "ssl/ca.pem"', 'backend_ca = "ssl/ca.pem"\nsticky = "cokie"'),
        ('route = "w2"', 'route = "w1"'),
        ("[2001:db8::1]:443", "[2001:db8::1]:0"),
    )
    assert sorted(each.where for each in found) == [
        "admin.listen",
        "listener.https.listen[1]",
        "listener.https.route[0].client_ca",
        "listener.https.route[0].min_version",
        "listener.https.route[0].sni[0]",
        "log.access",
        "pool.rest.backend[0].address",
        "pool.web.backend[1].route",
        "pool.web.sticky",
        "relay.worker",
    ]
    assert all(
        each.remedy and "\n" not in str(each)
        for each in found
        if each.where not in {"log.access", "listener.https.route[0].min_version"}
    )


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("san_ip", "ip"),
        ("san_email", "email"),
        ("dns", "san_dns"),
        ("issuers", "issuer"),
        ("sha256", "fingerprint_sha256"),
    ],
)
def test_an_unknown_key_of_allow_names_the_one_that_was_meant(problems, wrong, meant):
    (found,) = problems(('pool = "web"', f'pool = "web"\nallow = {{{wrong} = ["x"]}}'))
    assert found.remedy == f"did you mean {meant}?"
