"""The findings of `relay check` about CAs, by the rules for their chains."""

from datetime import UTC, datetime, timedelta

import pytest

from relay.demo.ca import Authority, LeafSpec, to_pem
from relay.tls.certificates.findings import Level
from relay.tls.certificates.lint import lint_with_periods
from relay.tls.certificates.strict import strict_failure
from relay.tls.certificates.validity import windows_of
from tests.support.handshakes import client_context, config_of, meet_client, route_of
from tests.support.odd import (
    CN,
    KEY_USAGE,
    TRUE,
    Odd,
    attribute,
    extension,
    make_root,
    name,
    pem,
    sequence,
    tlv,
    write_odd,
)
from tests.support.pki import parsed

NOW = datetime.now(UTC)
CLIENT_CA, BACKEND_CA = "listener.https.route[0].client_ca", "pool.main.backend_ca"


def write_cas(directory, *authorities):
    file = directory / "cas.pem"
    file.write_bytes(to_pem(each.certificate for each in authorities))
    return file


@pytest.fixture(params=["route", "pool"])
def linted(request, pki):
    """The findings about the CAs of a route, or of a pool."""

    def check(cas, **rules):
        if request.param == "route":
            config, where = config_of(pki, routes=({"client_ca": cas, **rules},)), CLIENT_CA
        else:
            config, where = config_of(pki, backend_ca=cas, **rules), BACKEND_CA
        findings, periods = lint_with_periods(config, NOW)
        found = [each for each in findings if where in each.where.split(", ")]
        assert all(each.level is Level.INFO or each.remedy for each in found)
        return found, periods[where]

    return check


def levels(found):
    return sorted((str(each.level), each.subject) for each in found)


def test_an_issuing_ca_alone_is_an_error_that_proposes_partial_chain(pki, tmp_path, linted):
    alone = write_cas(tmp_path, pki.intermediate)
    found, _ = linted(alone)
    assert levels(found) == [("error", "CN=Test Intermediate CA")]
    assert 'its issuer "CN=Test CA" is not in this file' in found[0].what
    assert "or set partial_chain = true" in found[0].remedy


def test_an_issuing_ca_alone_is_sound_with_partial_chain(pki, tmp_path, linted):
    found, period = linted(write_cas(tmp_path, pki.intermediate), partial_chain=True)
    assert levels(found) == [("info", "CN=Test Intermediate CA")]
    assert period.until_at == pki.intermediate.certificate.not_valid_after_utc.timestamp()


def test_an_expired_root_does_not_end_a_partial_chain(tmp_path, linted):
    root = Authority.root("Old", not_before=NOW - timedelta(9), not_after=NOW - timedelta(1))
    below = root.intermediate("Young")
    both = write_cas(tmp_path, root, below)
    found, period = linted(both)
    assert ("error", "CN=Old") in levels(found)
    assert period.why_invalid(NOW.timestamp())
    found, period = linted(both, partial_chain=True)
    assert levels(found) == [("info", "CN=Young"), ("warning", "CN=Old")]
    assert not period.why_invalid(NOW.timestamp())


def test_a_leaf_among_the_cas_is_trusted_alone_and_that_is_said(pki, tmp_path, linted, request):
    inbound = "route" in request.node.callspec.id
    own, other = (pki.client, pki.backend) if inbound else (pki.backend, pki.client)
    for files, level in ((own, "warning"), (other, "error")):
        file = tmp_path / "leaf.pem"
        file.write_bytes(files.certificate.read_bytes())
        found, _ = linted(file, partial_chain=True)
        assert [str(each.level) for each in found] == [level]
        said = "only the one peer that has it is trusted" if files is own else "cannot serve as a"
        assert said in found[0].what
        found, _ = linted(file)
        assert "is not a CA certificate" in found[0].what
        assert found[0].level is Level.ERROR


def test_what_strict_x509_refuses_is_an_error_only_with_it(tmp_path, linted):
    """A root that OpenSSL accepts by default: without key identifiers and keyUsage."""
    der, _ = make_root(Odd(subject=name(attribute(CN, "Plain Root"))))
    file = tmp_path / "plain.pem"
    file.write_bytes(pem(der))
    found, _ = linted(file)
    (told,) = [each for each in found if "X509_STRICT" in each.what]
    assert told.level is Level.INFO
    found, _ = linted(file, strict_x509=True)
    assert levels(found) == [("error", "CN=Plain Root")]
    assert "is refused by strict_x509: " in found[0].what
    assert found[0].remedy == "reissue it, or remove strict_x509"


def test_sound_cas_have_no_finding_with_strict_x509(pki, linted):
    found, _ = linted(pki.ca, strict_x509=True)
    assert levels(found) == [("info", "CN=Test CA")]


def test_a_ca_too_deep_for_max_chain_depth_is_told(pki, tmp_path, linted):
    low = pki.intermediate.intermediate("Low")
    every = write_cas(tmp_path, pki.authority, pki.intermediate, low)
    for depth, deep in ((1, ["CN=Low", "CN=Test Intermediate CA"]), (2, ["CN=Low"]), (3, [])):
        found, _ = linted(every, max_chain_depth=depth)
        told = [each for each in found if f"max_chain_depth is {depth}" in each.what]
        assert sorted(each.subject for each in told) == deep
        assert all(each.remedy == "raise max_chain_depth" for each in told)
        found, _ = linted(every, max_chain_depth=depth, partial_chain=True)
        assert {str(each.level) for each in found} == {"info"}


def test_one_file_under_two_rules_has_the_findings_of_both(pki, tmp_path):
    alone = write_cas(tmp_path, pki.intermediate)
    config = config_of(
        pki,
        routes=(
            {"sni": ("a.example.com",), "client_ca": alone, "partial_chain": True},
            {"sni": ("b.example.com",), "client_ca": alone},
        ),
    )
    findings, periods = lint_with_periods(config, NOW)
    errors = [each.where for each in findings if each.level is Level.ERROR]
    assert errors == ["listener.https.route[1].client_ca"]
    assert not periods[CLIENT_CA].why_invalid(NOW.timestamp())


def test_a_window_is_that_of_the_ca_alone_in_a_partial_chain(pki):
    short = pki.authority.issue(LeafSpec("short", not_after=NOW + timedelta(1))).certificate
    cas = [parsed(pki.authority.certificate), parsed(short)]
    found = windows_of(cas, partial=True)
    assert [found[each].until_at for each in cas] == [
        each.not_valid_after_utc.timestamp() for each in cas
    ]


KEY_ID, AUTHORITY_KEY_ID = bytes(range(20)), "2.5.29.35"
ROOTS = {
    "no key identifier": (),
    "no keyUsage": (extension("2.5.29.14", tlv(4, KEY_ID)),),
    "sound": (
        extension("2.5.29.14", tlv(4, KEY_ID)),
        extension(KEY_USAGE, tlv(3, b"\1\6"), TRUE),
    ),
}


@pytest.mark.parametrize("what", ROOTS)
def test_the_finding_about_a_ca_is_that_of_a_strict_handshake(pki, tmp_path, what):
    odd = Odd(subject=name(attribute(CN, "Plain Root")), extensions=ROOTS[what])
    der, signer = make_root(odd)
    file = tmp_path / "plain.pem"
    file.write_bytes(pem(der))
    identifier = extension(AUTHORITY_KEY_ID, sequence(tlv(0x80, KEY_ID)))
    client = write_odd(tmp_path, "client", Odd(extensions=(identifier,)), signer)
    route = {"client_ca": file, "strict_x509": True}
    findings = lint_with_periods(config_of(pki, routes=(route,)), NOW).findings
    (told,) = [each for each in findings if each.where == CLIENT_CA]
    with meet_client(route_of(pki, **route), client_context(pki, client)) as meeting:
        if what == "sound":
            assert (meeting.reason, told.level) == ("done", Level.INFO)
        else:
            assert meeting.reason == "invalid_certificate"
            text = meeting.result.detail.partition(" (certificate 1")[0]
            assert f"is refused by strict_x509: {text}" in told.what


@pytest.mark.parametrize("key_type", ["ec-p256", "rsa-2048"])
def test_a_sound_ca_of_each_key_type_has_no_strict_finding(key_type):
    for partial in (True, False):
        root = parsed(Authority.root("Root", key_type=key_type).certificate)
        assert strict_failure(root, (), partial=partial) is None
