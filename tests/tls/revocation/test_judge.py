"""Whether a peer is refused by the lists, beside the verdict of OpenSSL."""

import subprocess
import time

import pytest

from relay.demo.ca import to_pem
from relay.errors import Reason, Side
from relay.tls.certificates.configured import ChainRules
from relay.tls.explain import Failure
from relay.tls.revocation.judge import why_revoked
from relay.tls.revocation.revoked_cas import revoked_cas
from relay.tls.trust import CaTrust, ClientTrust, CrlPolicy
from tests.support.crls import make_crl
from tests.support.crls import to_pem as lists_to_pem
from tests.support.pki import parsed
from tests.support.programs import program
from tests.support.revocation_cases import (
    CASES,
    EMPTY,
    GOOD,
    ISSUING,
    NAMESAKE,
    OF_NAMESAKE,
    ROOT,
    Case,
    identity,
    set_of,
    trust_of,
)

all_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def judged(case: Case, *, resumed: bool = False, revoked=None, side=Side.INBOUND, now_at=None):
    chain = () if resumed else tuple(identity(each.certificate) for each in case.above)
    now_at = now_at or time.time()
    revoked = revoked or set_of(case)
    found = why_revoked(side, identity(case.leaf), chain, trust_of(case), revoked, now_at)
    # What was remembered of the chain changes nothing.
    assert why_revoked(side, identity(case.leaf), chain, trust_of(case), revoked, now_at) == found
    return found


@all_cases
def test_a_full_handshake_is_judged_by_the_chain(case):
    found = judged(case)
    assert (found and found.reason) == case.reason
    assert case.says in (found.detail if found else "")


@all_cases
def test_a_resumption_is_judged_by_the_leaf(case):
    found = judged(case, resumed=True)
    assert (found and found.reason) == (case.reason if case.resumed == "the same" else case.resumed)


@all_cases
def test_openssl_agrees(case, tmp_path):
    (tmp_path / "leaf.pem").write_bytes(to_pem([case.leaf]))
    (tmp_path / "root.pem").write_bytes(to_pem([ROOT.certificate]))
    (tmp_path / "chain.pem").write_bytes(to_pem(each.certificate for each in case.above))
    (tmp_path / "lists.pem").write_bytes(lists_to_pem(*case.lists))
    command = [program("openssl"), "verify", "-CAfile", "root.pem", "-untrusted", "chain.pem"]
    if case.lists:
        command += ["-CRLfile", "lists.pem"]
    command += ["-crl_check_all", "-extended_crl", "-use_deltas", "leaf.pem"]
    done = subprocess.run(command, check=False, timeout=30, capture_output=True, cwd=tmp_path)
    expected = case.reason is None if case.openssl is None else case.openssl
    assert (done.returncode == 0) == expected, done.stdout + done.stderr


def test_a_backend_has_reasons_of_its_own():
    pairs = {
        "leaf revoked": Reason.BACKEND_REVOKED,
        "no list at all": Reason.BACKEND_CRL_MISSING,
        "the issuer's list expired": Reason.BACKEND_CRL_EXPIRED,
    }
    for name, reason in pairs.items():
        assert judged(CASES[name], side=Side.OUTBOUND).reason == reason


def test_a_list_that_expires_while_it_is_used_refuses():
    for name in ("good", "good, below the root"):
        case = CASES[name]
        revoked = set_of(case)
        assert judged(case, revoked=revoked) is None
        later = judged(case, revoked=revoked, now_at=time.time() + 30 * 86400)
        assert later.reason is Reason.CRL_EXPIRED
        assert "has expired" in later.detail


def test_a_chain_that_passed_does_not_speak_for_another_one():
    good = CASES["good"]
    revoked = set_of(good)
    assert judged(good, revoked=revoked) is None
    twin = Case(OF_NAMESAKE, good.lists, (NAMESAKE, ROOT))
    assert judged(twin, revoked=revoked).reason is Reason.CRL_MISSING


def test_without_a_set_every_list_is_missing():
    case = CASES["good"]
    chain = tuple(identity(each.certificate) for each in case.above)
    for policy, reason in (
        (CrlPolicy(), Reason.CRL_MISSING),
        (CrlPolicy(True), None),
        (None, None),
    ):
        trust = ClientTrust(None, trust_of(case).cas, policy)
        found = why_revoked(Side.INBOUND, identity(case.leaf), chain, trust, None, time.time())
        assert (found and found.reason) == reason


def test_a_resumption_below_an_unknown_ca_is_refused_with_its_name():
    case = CASES["an issuer that the client sent"]
    found = judged(case, resumed=True)
    assert found.detail == (
        'the CA that issued it, "CN=Issuing", is not trusted here, so no list covers it'
    )


def test_a_chain_that_ends_at_a_revoked_intermediate_is_refused():
    """With partial_chain, the root that revoked it is not in the chain."""
    lists = (make_crl(ROOT, [ISSUING.certificate]), EMPTY)
    case = Case(GOOD, lists, (ISSUING,), trusted=(ROOT, ISSUING))
    cas = [parsed(each.certificate) for each in case.trusted]
    revoked = set_of(case)
    gone = revoked_cas(cas, revoked)
    rules = ChainRules(partial_chain=True)
    kept = [each for each in cas if each not in gone]
    trust = ClientTrust(None, CaTrust.of(kept, {}, rules, gone), case.policy)
    chain = (identity(ISSUING.certificate),)
    found = why_revoked(Side.INBOUND, identity(GOOD), chain, trust, revoked, time.time())
    assert found == Failure(
        Reason.REVOKED, 'the CA "CN=Issuing", where its chain ends, is revoked itself'
    )
    removed = ClientTrust(None, CaTrust.of([parsed(ROOT.certificate)], {}, rules), case.policy)
    found = why_revoked(Side.INBOUND, identity(GOOD), chain, removed, revoked, time.time())
    assert found == Failure(
        Reason.UNKNOWN_CA, 'the CA "CN=Issuing", where its chain ends, is no longer trusted'
    )
    unrevoked = set_of(Case(GOOD, (EMPTY,), trusted=(ROOT, ISSUING)))
    trust = ClientTrust(None, CaTrust.of(cas, {}, rules), case.policy)
    assert why_revoked(Side.INBOUND, identity(GOOD), chain, trust, unrevoked, time.time()) is None
