"""What `relay check`, a start and a reload say about the lists of a configuration."""

from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import pytest

from relay.config.section import Crl
from relay.demo.ca import Authority
from relay.demo.ca import to_pem as certificates_to_pem
from relay.files import Files
from relay.tls.revocation import set_builder
from relay.tls.revocation.crl import key_id
from relay.tls.revocation.fetched import FetchedLists
from relay.tls.revocation.lint_lists import lint_lists
from relay.tls.revocation.revoked_set import RevokedSet
from relay.tls.revocation.selection import accepted_of
from relay.tls.revocation.trust_sets import trust_sets_of
from tests.support.crls import make_crl, serial_of, to_pem, with_name
from tests.support.handshakes import config_of
from tests.support.pki import parsed

ROOT = Authority.root("Root")
BELOW = ROOT.intermediate("Below")
OTHER = Authority.root("Other")
NONE = MappingProxyType({})
ROUTE = "listener.https.route[0].crl"


@pytest.fixture
def check(pki, tmp_path):
    """`check(cas, lists, …)`: the findings, and the only set or None."""

    def run(cas, lists, *, fetched=(), accepted=NONE, pool=False, now=None, **settings):
        ca = tmp_path / "ca.pem"
        ca.write_bytes(certificates_to_pem(each.certificate for each in cas))
        names = []
        for number, data in enumerate([*lists, *fetched]):
            names.append(tmp_path / f"{number}.crl")
            names[-1].write_bytes(data)
        files = tuple(names[: len(lists)])
        crl = Crl(**{"files": files, **settings})
        config = (
            config_of(pki, routes=({},), backend_ca=ca, crl=crl)
            if pool
            else config_of(pki, routes=({"client_ca": ca, "crl": crl},))
        )
        [name] = trust_sets_of(config)
        checked = lint_lists(
            config,
            now or datetime.now(UTC),
            Files(),
            lambda _set: FetchedLists(
                {name: f"http://pki/{name.name}" for name in names[len(lists) :]}
            ),
            {name: accepted},
        )
        buffer = checked.sets.get(name)
        return checked.findings + checked.dates, None if buffer is None else RevokedSet(buffer)

    return run


def worst(findings):
    """The findings that are no INFO, as "level: what; remedy"."""
    return [
        f"{each.level}{' (temporary)' if each.temporary else ''}: {each.what}; {each.remedy}"
        for each in findings
        if each.level != "info"
    ]


def test_a_good_list_is_one_line_and_a_set(check):
    leaf = ROOT.client("a").certificate
    [finding], revoked = check([ROOT], [make_crl(ROOT, [leaf], number=17)])
    assert finding.level == "info"
    assert 'CRL 17 of "CN=Root" from' in finding.what
    assert "revoked: 1" in finding.what
    assert finding.where == ROUTE
    key = key_id(parsed(ROOT.certificate).spki)
    assert revoked.find(key, serial_of(leaf)).day == "2026-11-26"


def test_a_ca_without_a_list_is_an_error(check):
    """Peers give the list of the issuing CA alone, and then every client is refused."""
    findings, revoked = check([ROOT, BELOW], [make_crl(BELOW)])
    [problem] = worst(findings)
    assert problem.startswith("error: ")
    assert 'the CA "CN=Root" has no list: the clients would be refused' in problem
    assert 'add its list to listener.https.route[0].crl.files, or set crl.missing = "accept"' in (
        problem
    )
    assert revoked is not None
    assert worst(check([ROOT, BELOW], [to_pem(make_crl(BELOW), make_crl(ROOT))])[0]) == []


def test_a_trusted_peer_that_no_list_covers_is_an_error(check, pki):
    alone = pki.client_self_signed.issued
    [problem] = worst(check([ROOT, alone], [make_crl(ROOT)])[0])
    assert problem.startswith("error: ")
    assert '"CN=selma" is not a CA, and no list covers it' in problem
    issued = ROOT.client("pinned")
    assert worst(check([ROOT, issued], [make_crl(ROOT)])[0]) == []


def test_a_ca_needs_a_list_although_another_name_of_its_key_has_one(check):
    renamed = with_name(ROOT, "Renamed")
    [problem] = worst(check([ROOT, renamed], [make_crl(ROOT)])[0])
    assert 'the CA "CN=Renamed" has no list: the clients would be refused' in problem
    assert worst(check([ROOT, renamed], [make_crl(ROOT), make_crl(renamed)])[0]) == []


def test_a_ca_that_has_expired_needs_no_list(check):
    old = Authority.root("Old", not_after=datetime.now(UTC) - timedelta(minutes=1))
    assert worst(check([ROOT, old], [make_crl(ROOT)])[0]) == []


def test_an_accepted_ca_without_a_list_is_a_warning(check):
    [problem] = worst(check([ROOT, OTHER], [make_crl(ROOT)], missing="accept")[0])
    assert problem.startswith("warning: ")
    assert "what it issued is not looked up" in problem


def test_a_list_that_may_be_fetched_is_a_warning(check):
    [problem] = worst(check([ROOT], [], urls=("http://pki.example.com/a",))[0])
    assert problem.startswith("warning: ")
    assert "the clients are refused until one is fetched" in problem


def test_a_list_without_the_certificates_it_must_cover_is_missing(check):
    users = make_crl(ROOT, scope={"only_contains_user_certs": True})
    cas = make_crl(ROOT, scope={"only_contains_ca_certs": True})
    assert worst(check([ROOT], [users])[0]) == []
    assert "has no list" in worst(check([ROOT], [cas])[0])[0]
    assert worst(check([ROOT, BELOW], [cas, make_crl(BELOW)])[0]) == []
    assert "has no list" in worst(check([ROOT, BELOW], [users, make_crl(BELOW)])[0])[0]
    assert worst(check([ROOT, BELOW], [users, cas, make_crl(BELOW)])[0]) == []


def test_an_expired_list_refuses_its_clients_but_no_start(check):
    expired = make_crl(ROOT, age=timedelta(days=9))
    findings, revoked = check([ROOT], [expired])
    [problem] = worst(findings)
    assert problem.startswith("error (temporary): ")
    assert "2 days ago: the clients that it covers are refused" in problem
    assert revoked is not None


@pytest.mark.parametrize(
    ("grace_s", "level"), [(3 * 86_400, "warning: "), (86_400, "error (temporary): ")]
)
def test_an_expired_list_counts_in_its_grace(check, grace_s, level):
    expired = make_crl(ROOT, age=timedelta(days=9))
    [problem] = worst(check([ROOT], [expired], expired="grace", grace_s=grace_s)[0])
    assert problem.startswith(level)


def test_a_list_of_a_foreign_ca_is_named(check):
    [problem] = worst(check([ROOT], [make_crl(ROOT), make_crl(OTHER)])[0])
    assert problem.startswith("warning: ")
    assert 'CRL 1 of "CN=Other"' in problem
    assert "belongs to no CA that is trusted here" in problem


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<html>", "HTML page"),
        (make_crl(ROOT, signer=OTHER.key), "was not signed by this CA"),
        (make_crl(ROOT, age=timedelta(days=-1)), "issued in the future"),
        (make_crl(ROOT, number=2, base=1), "there is no complete list of this CA"),
        (make_crl(ROOT, scope={"indirect_crl": True}), "indirect list"),
    ],
)
def test_a_bad_list_is_an_error_and_no_set(check, data, words):
    findings, revoked = check([ROOT], [data])
    assert revoked is None
    [problem] = worst(findings)
    assert problem.startswith("error: ")
    assert words in problem


def test_a_bad_fetched_list_is_unused(check):
    urls = ("http://pki.example.com/a",)
    for bad in (b"<html>", make_crl(ROOT, signer=OTHER.key)):
        findings, revoked = check([ROOT], [make_crl(ROOT, [5])], fetched=[bad], urls=urls)
        assert [each[:8] for each in worst(findings)] == ["warning:"]
        assert len(revoked) == 1


def test_the_newer_of_a_file_and_a_fetched_list_counts(check):
    old, new = make_crl(ROOT, [5], number=1), make_crl(ROOT, [6, 7], number=2)
    urls = ("http://pki.example.com/a",)
    for lists, fetched in (([old], [new]), ([new], [old])):
        assert len(check([ROOT], lists, fetched=fetched, urls=urls)[1]) == 2


def test_a_list_that_goes_back_or_vanishes_is_an_error(check):
    _, before = check([ROOT], [make_crl(ROOT, number=5)])
    accepted = accepted_of(before.lists)
    for lists, words in (
        ([make_crl(ROOT, number=4)], "the list in use has the number 5"),
        ([make_crl(OTHER)], "is in use, and no list has taken its place"),
    ):
        findings, revoked = check([ROOT], lists, accepted=accepted)
        assert any(words in each for each in worst(findings))
        assert revoked is None
    assert check([ROOT], [make_crl(ROOT, number=6)], accepted=accepted)[1] is not None
    # Nothing is forgotten with a CA that is not trusted any more.
    assert check([OTHER], [make_crl(OTHER)], accepted=accepted)[1] is not None


def test_too_many_lists_are_an_error(check, monkeypatch):
    monkeypatch.setattr(set_builder, "MOST_LISTS", 2)
    shards = [make_crl(ROOT, scope={"uris": (f"http://a/{number}",)}) for number in range(3)]
    assert check([ROOT], shards[:2])[1] is not None
    findings, revoked = check([ROOT], shards)
    assert revoked is None
    assert "there are 3 lists that count, and 2 fit" in worst(findings)[0]


def test_a_revoked_ca_is_named(check):
    lists = [make_crl(ROOT, [BELOW.certificate]), make_crl(BELOW)]
    lower = BELOW.intermediate("Lower")
    findings, _ = check([ROOT, BELOW, lower], lists)
    [above, below] = [each for each in findings if each.level == "warning"]
    assert above.subject == "CN=Below"
    assert above.what.startswith("is revoked 2026-11-26")
    assert below.subject == "CN=Lower"
    assert below.what.startswith("is below a CA that is revoked")


def test_backends_are_named_as_such(check):
    findings, _ = check([ROOT, OTHER], [make_crl(ROOT)], pool=True)
    [problem] = [each for each in findings if each.level == "error"]
    assert problem.where == "pool.main.crl"
    assert "the backends would be refused" in problem.what


def test_routes_with_equal_lists_share_a_set(pki, tmp_path):
    crl = Crl(files=(tmp_path / "a.crl",))
    alike = {"client_ca": pki.ca, "crl": crl}
    other_policy = {"client_ca": pki.ca, "crl": crl.model_copy(update={"missing": "accept"})}
    short = {"client_ca": pki.ca, "client_crl": crl.files}
    other_ca = {"client_ca": pki.foreign_ca, "crl": crl}
    config = config_of(pki, routes=(alike, other_policy, short, other_ca, {}))
    first, second = trust_sets_of(config).values()
    assert [use.where.rpartition("route")[2] for use in first.uses] == [
        "[0].crl",
        "[1].crl",
        "[2].client_crl",
    ]
    assert second.cas == pki.foreign_ca
