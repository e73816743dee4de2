"""accept_server_certificates: clients whose certificates are for TLS servers only."""

import time
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from relay.tls.access_rules import compile_rules
from relay.tls.certificates.lint import lint_with_periods
from relay.tls.identity import admit
from tests.support.handshakes import (
    VERSIONS,
    allow,
    begin_session,
    client_context,
    config_of,
    meet_client,
    route_of,
)
from tests.support.odd import (
    CN,
    EKU,
    KEY_USAGE,
    SAN,
    TRUE,
    Odd,
    attribute,
    dns,
    extension,
    make,
    make_root,
    name,
    oid,
    pem,
    sequence,
    tlv,
)
from tests.support.pki import Files

NAME = "client.partner.example"
ALLOW = allow(san_dns=(NAME,))
SERVER, CLIENT, MAIL, ANY, STEP_UP = (
    "1.3.6.1.5.5.7.3.1",
    "1.3.6.1.5.5.7.3.2",
    "1.3.6.1.5.5.7.3.4",
    "2.5.29.37.0",
    "2.16.840.1.113730.4.1",  # server gated crypto, which OpenSSL takes for serverAuth
)
NETSCAPE = "2.16.840.1.113730.1.1"
both_versions = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)


def eku(*uses):
    return (extension(EKU, sequence(*map(oid, uses))),) if uses else ()


def usage(bits):
    return (extension(KEY_USAGE, tlv(3, bytes((0, bits))), TRUE),)


def netscape(bits):
    return (extension(NETSCAPE, tlv(3, bytes((0, bits)))),)


def without_both(body):
    """`tests.support.odd` gives every leaf an extendedKeyUsage; ours replaces it."""
    both = extension(EKU, sequence(oid(SERVER), oid(CLIENT)))
    filler = extension("1.2.3.4.5.6", bytes(len(both) - len(extension("1.2.3.4.5.6", b""))))
    assert len(filler) == len(both)
    return body.replace(both, filler, 1)


@pytest.fixture
def issue(tmp_path):
    """The files of a leaf, with its chain, and of its root, with these extensions."""

    def write(leaf=(), middle=None, root=()):
        root_der, signer = make_root(Odd(subject=name(attribute(CN, "Public")), extensions=root))
        chain = b""
        if middle is not None:
            odd = Odd(subject=name(attribute(CN, "Issuing")), extensions=middle)
            der, key = make(odd, signer, ca=True)
            chain, signer = pem(der), type(signer)(odd.subject, key)
        odd = Odd(extensions=leaf, san=extension(SAN, dns(NAME)), bend=without_both)
        der, key = make(odd, signer)
        ca, files = tmp_path / "ca.pem", Files(tmp_path / "c.pem", tmp_path / "c.key", None)
        ca.write_bytes(pem(root_der))
        files.certificate.write_bytes(pem(der) + chain)
        files.key.write_bytes(private_pem(key))
        return files, ca

    return write


def private_pem(key):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def meets(pki, version, files, ca, *, given):
    """Reason and detail of a full handshake, checked as in a worker."""
    route = route_of(pki, client_ca=ca, allow=ALLOW, accept_server_certificates=given)
    with meet_client(
        route,
        client_context(pki, files, version),
        check=lambda who: admit(who, route.trust, time.time()),
    ) as meeting:
        return meeting.reason, getattr(meeting.result, "detail", ""), meeting.alert


# Leaf, intermediate (None: there is none), root: accepted without and with the key.
CHAINS = {
    "for clients": (eku(CLIENT), None, (), True, True),
    "for both": (eku(SERVER, CLIENT), None, (), True, True),
    "for anything": ((), None, (), True, True),
    "for servers": (eku(SERVER), None, (), False, True),
    "server gated crypto": (eku(STEP_UP), None, (), False, True),
    "for servers and mail": (eku(MAIL, SERVER), None, (), False, True),
    "for mail": (eku(MAIL), None, (), False, False),
    "any use": (eku(ANY), None, (), False, False),
    "below a CA for servers": (eku(SERVER, CLIENT), eku(SERVER), (), False, True),
    "client below a CA for servers": (eku(CLIENT), eku(SERVER), (), False, True),
    "below a CA for clients": (eku(SERVER), eku(CLIENT), (), False, True),
    "below a CA for mail": (eku(SERVER), eku(MAIL), (), False, False),
    "below a root for mail": (eku(SERVER), (), eku(MAIL), False, False),
    "may sign": (eku(SERVER) + usage(0x80), None, (), False, True),
    "may only encipher": (eku(SERVER) + usage(0x20), None, (), False, False),
    "client may only encipher": (eku(CLIENT) + usage(0x20), None, (), False, False),
    "Netscape's server": (eku(SERVER) + netscape(0x40), None, (), False, True),
    "Netscape's client": (eku(SERVER) + netscape(0x80), None, (), False, True),
    "Netscape's mail": (eku(SERVER) + netscape(0x20), None, (), False, False),
}


@both_versions
@pytest.mark.parametrize("case", CHAINS.values(), ids=CHAINS)
def test_each_certificate_of_a_chain_is_for_clients_or_servers(pki, issue, version, case):
    *chain, without, given = case
    files, ca = issue(*chain)
    for accepts, consent in ((without, False), (given, True)):
        reason, detail, alert = meets(pki, version, files, ca, given=consent)
        assert reason == ("done" if accepts else "wrong_purpose"), detail
        if not accepts:
            assert detail
            assert "ALERT" in alert


SAID = {
    "for mail": ("its extendedKeyUsage (emailProtection) lacks clientAuth and serverAuth"),
    "any use": "its extendedKeyUsage (anyExtendedKeyUsage) lacks clientAuth and serverAuth",
    "below a CA for mail": (
        'its issuer "CN=Issuing" (certificate 1 of its chain) may not issue it: its'
        " extendedKeyUsage (emailProtection) lacks clientAuth and serverAuth"
    ),
    "below a root for mail": 'its issuer "CN=Public" (certificate 2 of its chain) may not issue',
    "may only encipher": "its keyUsage (keyEncipherment) lacks digitalSignature",
    "Netscape's mail": "its nsCertType forbids it",
}


@pytest.mark.parametrize("case", SAID)
def test_a_refusal_with_consent_names_the_extension(pki, issue, case):
    files, ca = issue(*CHAINS[case][:3])
    _, detail, alert = meets(pki, VERSIONS["TLSv1.3"], files, ca, given=True)
    assert detail.startswith(SAID[case])
    assert alert == "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"


@pytest.mark.parametrize("case", ["for servers", "below a CA for servers"])
def test_a_refusal_without_consent_says_why_and_what_to_do(pki, issue, case):
    files, ca = issue(*CHAINS[case][:3])
    _, detail, _ = meets(pki, VERSIONS["TLSv1.3"], files, ca, given=False)
    assert "its extendedKeyUsage (serverAuth) lacks clientAuth: public CAs have issued" in detail
    assert "since 2026" in detail
    assert "set accept_server_certificates = true, and name the clients in allow" in detail
    assert ('issuer "CN=Issuing"' in detail) is (case != "for servers")


@both_versions
def test_a_client_with_a_server_certificate_resumes(pki, issue, version):
    files, ca = issue(eku(SERVER))
    route = route_of(pki, client_ca=ca, allow=ALLOW, accept_server_certificates=True)
    context = client_context(pki, files, version)
    session = begin_session(route, context)

    def check(who):
        return admit(who, route.trust, time.time())

    with meet_client(route, context, session=session, check=check) as meeting:
        assert (meeting.reason, meeting.resumed) == ("done", True)


@both_versions
def test_allow_is_judged_for_server_certificates(pki, issue, version):
    files, ca = issue(eku(SERVER))
    other = allow(san_dns=("other.example",))
    route = route_of(pki, client_ca=ca, allow=other, accept_server_certificates=True)
    with meet_client(
        route,
        client_context(pki, files, version),
        check=lambda who: admit(who, route.trust, time.time()),
    ) as meeting:
        assert meeting.reason == "not_allowed"


def test_consent_that_was_withdrawn_ends_what_is_open(pki, issue):
    """A session of the old configuration is judged by the rules of the new one."""
    files, ca = issue(eku(SERVER))
    route = route_of(pki, client_ca=ca, allow=ALLOW, accept_server_certificates=True)
    with meet_client(route, client_context(pki, files)) as meeting:
        who = meeting.identity
    today = compile_rules(ALLOW)
    assert not today.allow(who)
    assert "it is for servers only, and accept_server_certificates is not set" in today.why_not(who)
    assert compile_rules(ALLOW, accept_servers=True).allow(who)


def test_consent_of_one_route_does_not_reach_another(pki, issue):
    """Both routes name the same file of CAs."""
    files, ca = issue(eku(SERVER))
    for given, reason in ((True, "done"), (False, "wrong_purpose"), (True, "done")):
        found, _, _ = meets(pki, VERSIONS["TLSv1.3"], files, ca, given=given)
        assert found == reason


def test_an_unknown_ca_and_old_dates_are_refused_as_before(pki, issue):
    files, _ = issue(eku(SERVER))
    assert meets(pki, VERSIONS["TLSv1.3"], files, pki.ca, given=True)[0] == "unknown_ca"
    found = meets(pki, VERSIONS["TLSv1.3"], pki.client_expired, pki.ca, given=True)
    assert found[0] == "expired"


def test_a_ca_that_may_not_sign_is_refused_as_before(pki, issue):
    files, ca = issue(eku(SERVER), usage(0x80))
    reason, detail, _ = meets(pki, VERSIONS["TLSv1.3"], files, ca, given=True)
    assert reason == "invalid_certificate"
    assert 'its issuer "CN=Issuing" (certificate 1 of its chain) may not issue it' in detail


def test_a_ca_for_servers_only_is_an_error_without_consent(pki, issue):
    _, ca = issue(root=eku(SERVER))
    where = "listener.https.route[0].client_ca"
    for given in (False, True):
        route = {"client_ca": ca, "allow": ALLOW, "accept_server_certificates": given}
        findings = lint_with_periods(config_of(pki, routes=(route,)), datetime.now(UTC)).findings
        told = [each for each in findings if each.where == where and each.level.value == "error"]
        assert bool(told) is not given
        if told:
            assert "cannot issue client certificates" in told[0].what
            assert "accept_server_certificates = true" in told[0].remedy
