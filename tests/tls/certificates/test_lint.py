"""The findings of `relay check` for good and faulty certificates."""

import subprocess
import time
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import hashes

from relay.config.listener_model import Listener, Route
from relay.config.model import Config
from relay.config.pool_model import Backend, Pool
from relay.demo.ca import Authority, LeafSpec, _builder, _ca_extensions, _name, make_key, to_pem
from relay.tls.certificates.findings import Level
from relay.tls.certificates.lint import lint
from tests.support.pki import Files
from tests.support.programs import PATIENCE_S, output_of, program

NOW = datetime.now(UTC)
SERVER, CLIENT = "listener.https.route[0].certificate", "pool.a.machine_certificate"
KEY = "pool.a.machine_key"
CLIENT_CA, BACKEND_CA = "listener.https.route[0].client_ca", "pool.a.backend_ca"


@pytest.fixture
def linted(pki):
    """The findings for the good configuration with some files replaced."""

    def lint_with(
        *,
        gateway=pki.gateway,
        machine=pki.machine,
        client_ca=pki.ca,
        backend_ca=pki.ca,
        sni=("app.example.com",),
        now=NOW,
    ):
        route = Route(
            sni=sni,
            pool="a",
            certificate=gateway.certificate,
            private_key=gateway.key,
            client_ca=client_ca,
        )
        pool = Pool(
            machine_certificate=machine.certificate,
            machine_key=machine.key,
            backend_ca=backend_ca,
            backend=(Backend(route="w", address="127.0.0.1:1"),),
        )
        config = Config(
            listener=(Listener(name="https", listen=("127.0.0.1:0",), route=(route,)),),
            pool={"a": pool},
        )
        return lint(config, now)

    return lint_with


def bad(findings):
    for finding in findings:
        assert "\n" not in finding.what + finding.remedy
        assert finding.level is Level.INFO or finding.remedy, finding
    return [
        (str(finding.level), finding.where, finding.what)
        for finding in findings
        if finding.level is not Level.INFO
    ]


def server(pki, **differences):
    return pki.write(
        pki.authority.issue(
            LeafSpec(
                **{
                    "cn": "gateway",
                    "dns": ("app.example.com",),
                    "purposes": ("server",),
                    **differences,
                }
            )
        )
    )


def machine(pki, **differences):
    return pki.write(
        pki.authority.issue(LeafSpec(**{"cn": "machine", "purposes": ("client",), **differences}))
    )


def bundle(tmp_path, *certificates):
    file = tmp_path / "bundle.pem"
    file.write_bytes(to_pem(certificates))
    return file


def test_good_certificates_are_listed_with_end_and_key_paths(pki, linted):
    findings = linted()
    assert bad(findings) == []
    assert [(finding.file, finding.subject, finding.where) for finding in findings] == [
        (str(pki.gateway.certificate), "CN=gateway", SERVER),
        (str(pki.machine.certificate), "CN=relay machine", CLIENT),
        (str(pki.ca), "CN=Test CA", f"{CLIENT_CA}, {BACKEND_CA}"),
    ]
    assert all(
        f"valid until {NOW.year + 1}-" in finding.what and 'issued by "CN=Test CA"' in finding.what
        for finding in findings
    )


def test_one_certificate_may_serve_both_sides_if_it_allows_both(pki, linted):
    assert bad(linted(gateway=pki.both, machine=pki.both)) == []


@pytest.mark.parametrize(
    "purposes",
    [(), ("server",), ("client",), ("server", "client"), ("code",), ("any",)],
    ids="-".join,
)
@pytest.mark.parametrize(
    "usages", [(), ("digital_signature",), ("key_encipherment",), ("crl_sign",)], ids="-".join
)
def test_purposes_are_accepted_as_openssl_accepts_them(pki, linted, purposes, usages):
    files = server(pki, purposes=purposes, key_usages=usages)
    said = output_of("openssl", "x509", "-in", files.certificate, "-noout", "-purpose")
    errors = [
        (where, what)
        for level, where, what in bad(linted(gateway=files, machine=files))
        if level == "error"
    ]
    assert ("SSL server : Yes\n" not in said) == any(
        where == SERVER and "cannot serve as a server" in what for where, what in errors
    )
    assert ("SSL client : Yes\n" not in said) == any(
        where == CLIENT and "cannot serve as a client" in what for where, what in errors
    )


def test_the_extension_at_fault_is_named(pki, linted):
    assert bad(linted(machine=pki.gateway)) == [
        ("error", CLIENT, "cannot serve as a client: its extendedKeyUsage has only serverAuth")
    ]
    usage = machine(pki, key_usages=("key_encipherment",))
    assert bad(linted(machine=usage)) == [
        ("error", CLIENT, "cannot serve as a client: its keyUsage lacks digitalSignature")
    ]
    assert (
        "lacks digitalSignature"
        in bad(linted(gateway=server(pki, key_usages=("key_encipherment",))))[0][2]
    )


def test_unusable_files_are_errors_and_the_rest_is_still_checked(pki, linted, tmp_path):
    no_ca = tmp_path / "no.pem"
    findings = linted(
        client_ca=no_ca,
        gateway=Files(pki.gateway.certificate, pki.machine.key, pki.gateway.issued),
        machine=pki.gateway,
    )
    errors = [(finding.where, finding.what) for finding in findings if finding.level is Level.ERROR]
    assert (CLIENT_CA, f"{no_ca} does not exist") in errors
    assert (
        SERVER,
        (
            f"the private key in {pki.machine.key} does not belong to the certificate"
            f' "CN=gateway" in {pki.gateway.certificate}'
        ),
    ) in errors
    assert (CLIENT, "cannot serve as a client: its extendedKeyUsage has only serverAuth") in errors
    assert len(errors) == 3


@pytest.mark.parametrize(
    ("begins", "ends", "expected"),
    [
        (-60, -3, ("error", "expired on")),
        (3, 60, ("error", "is not valid before")),
        (-60, 29, ("warning", "in 28 days")),
        (-60, 31, None),
    ],
)
def test_dates_are_checked(pki, linted, begins, ends, expected):
    files = machine(
        pki, not_before=NOW + timedelta(days=begins), not_after=NOW + timedelta(days=ends)
    )
    found = bad(linted(machine=files))
    assert len(found) == (expected is not None)
    if expected:
        assert found[0][:2] == (expected[0], CLIENT)
        assert expected[1] in found[0][2]


def test_expiry_of_a_sent_intermediate_counts_and_of_a_root_does_not(pki, linted):
    past = {"not_before": NOW - timedelta(days=9), "not_after": NOW - timedelta(days=2)}
    expired = pki.authority.intermediate("Old Intermediate", **past)
    found = linted(machine=pki.write(expired.issue(LeafSpec("machine", purposes=("client",)))))
    assert [
        (finding.level, finding.subject) for finding in found if finding.what.startswith("expired")
    ] == [(Level.ERROR, "CN=Old Intermediate")]

    old_root = Authority.root("Old Root", **past)
    files = pki.write(old_root.issue(LeafSpec("machine", purposes=("client",))))
    files.certificate.write_bytes(to_pem([files.issued.certificate, old_root.certificate]))
    found = linted(machine=files)
    assert [
        (finding.level, finding.subject) for finding in found if finding.what.startswith("expired")
    ] == [(Level.WARNING, "CN=Old Root")]


def test_an_expired_ca_is_an_error_unless_its_successor_is_beside_it(pki, linted, tmp_path):
    old = Authority.root(
        "Old CA", not_before=NOW - timedelta(days=9), not_after=NOW - timedelta(days=2)
    ).certificate
    [(level, where, what)] = bad(linted(client_ca=bundle(tmp_path, old)))
    assert (level, where) == ("error", CLIENT_CA)
    assert what.startswith("expired on")
    [(level, _, what)] = bad(linted(client_ca=bundle(tmp_path, old, pki.authority.certificate)))
    assert level == "warning"
    assert what.startswith("expired on")


def test_a_ca_that_ends_soon_is_a_warning(pki, linted, tmp_path):
    soon = Authority.root("Soon CA", not_after=NOW + timedelta(days=10)).certificate
    [(level, where, what)] = bad(linted(client_ca=bundle(tmp_path, soon)))
    assert (level, where) == ("warning", CLIENT_CA)
    assert "expires on" in what


def test_a_leaf_is_not_a_ca(pki, linted):
    found = bad(linted(client_ca=pki.client.certificate))
    assert ("error", CLIENT_CA, "is not a CA certificate: its keyUsage lacks keyCertSign") in found


def test_a_trusted_self_signed_leaf_is_a_warning(pki, linted):
    [(level, where, what)] = bad(
        linted(backend_ca=pki.backend_self_signed.certificate, client_ca=pki.ca)
    )
    assert (level, where) == ("warning", BACKEND_CA)
    assert "only the one peer that has it is trusted" in what


def test_an_intermediate_without_its_root_is_an_error(pki, linted, tmp_path):
    [(level, where, what)] = bad(linted(client_ca=bundle(tmp_path, pki.intermediate.certificate)))
    assert (level, where) == ("error", CLIENT_CA)
    assert 'its issuer "CN=Test CA" is not in this file' in what
    assert (
        bad(
            linted(
                client_ca=bundle(tmp_path, pki.intermediate.certificate, pki.authority.certificate)
            )
        )
        == []
    )


def test_a_missing_intermediate_is_a_warning(pki, linted):
    [(level, where, what)] = bad(linted(machine=pki.client_intermediate_missing))
    assert (level, where) == ("warning", CLIENT)
    assert 'the chain ends here: its issuer "CN=Test Intermediate CA"' in what
    assert bad(linted(machine=pki.client_intermediate_sent)) == []


def test_an_intermediate_known_only_to_the_relay_should_be_sent(pki, linted, tmp_path):
    ca = bundle(tmp_path, pki.authority.certificate, pki.intermediate.certificate)
    [(level, where, what)] = bad(linted(machine=pki.client_intermediate_missing, backend_ca=ca))
    assert (level, where) == ("warning", CLIENT)
    assert "peers that know only the root will refuse it" in what


def test_a_chain_to_a_public_ca_without_its_root_is_fine(pki, linted):
    public = Authority.root("Public Root").intermediate("Public Intermediate")
    findings = linted(
        gateway=pki.write(
            public.issue(LeafSpec("gateway", dns=("app.example.com",), purposes=("server",)))
        )
    )
    assert bad(findings) == []
    assert any(
        finding.level is Level.INFO and "the chain ends here" in finding.what
        for finding in findings
    )


def test_a_chain_out_of_order_is_a_warning(pki, linted):
    lower = pki.intermediate.intermediate("Lower CA")
    files = pki.write(lower.issue(LeafSpec("machine", purposes=("client",))))
    files.certificate.write_bytes(
        to_pem([files.issued.certificate, *reversed(files.issued.intermediates)])
    )
    [(level, where, what)] = bad(linted(machine=files))
    assert (level, where) == ("warning", CLIENT)
    assert (
        what == 'is followed by "CN=Test Intermediate CA", which did not issue it;'
        ' its issuer is "CN=Lower CA"'
    )


def test_a_self_signed_certificate_is_a_warning(pki, linted):
    [(level, where, what)] = bad(linted(machine=pki.client_self_signed))
    assert (level, where) == ("warning", CLIENT)
    assert "is self-signed" in what


def test_names_of_the_route_that_the_certificate_lacks_are_listed(pki, linted):
    names = ("app.example.com", "*.example.com", "X.example.com", "a.b.example.com", "example.org")
    [(level, where, what)] = bad(linted(sni=names))
    assert (level, where) == ("warning", SERVER)
    assert what.startswith("does not carry a.b.example.com, example.org of")


def test_a_wildcard_route_needs_a_wildcard_certificate(pki, linted):
    [(level, _, what)] = bad(linted(gateway=server(pki), sni=("*.example.com",)))
    assert level == "warning"
    assert what.startswith("does not carry *.example.com of")


def test_a_certificate_without_names_is_a_warning_on_any_route(pki, linted):
    [(level, where, what)] = bad(linted(gateway=server(pki, dns=()), sni=()))
    assert (level, where) == ("warning", SERVER)
    assert what.startswith("carries no name")


def test_a_key_too_short_for_openssl_is_an_error_on_both_sides(pki, linted, tmp_path):
    weak = machine(pki, key_type="rsa-1024")
    [(level, where, what)] = bad(linted(machine=weak))
    assert (level, where) == ("error", CLIENT)
    assert "ee key too small" in what
    weak_ca = Authority.root("Weak CA", key_type="rsa-1024").certificate
    [(level, where, what)] = bad(linted(backend_ca=bundle(tmp_path, weak_ca)))
    assert (level, where) == ("error", BACKEND_CA)
    assert "too small" in what


def test_a_sha1_signature_is_an_error_as_every_peer_would_refuse_it(pki, linted, tmp_path):
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -subj /CN=Old -keyout ca.key -out ca.pem -days 99",
        "req -newkey rsa:2048 -nodes -subj /CN=machine -keyout leaf.key -out leaf.csr",
        (
            "x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -sha1 -days 99"
            " -out leaf.pem"
        ),
    ):
        subprocess.run(
            [program("openssl"), *command.split()],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            timeout=PATIENCE_S,
        )
    found = bad(
        linted(
            machine=Files(tmp_path / "leaf.pem", tmp_path / "leaf.key", None),
            backend_ca=tmp_path / "ca.pem",
            now=datetime.now(UTC) + timedelta(minutes=1),
        )
    )
    assert found == [
        (
            "error",
            CLIENT,
            "is signed with SHA-1, which OpenSSL refuses at its default security level",
        )
    ]


def test_a_machine_certificate_of_another_ca_is_info(pki, linted):
    findings = linted(backend_ca=pki.foreign_ca)
    assert bad(findings) == []
    assert [
        finding.where
        for finding in findings
        if "is not issued by a CA of this pool's backend_ca" in finding.what
    ] == [CLIENT]


def test_a_private_key_that_everybody_can_read_is_a_warning(pki, linted):
    files = machine(pki)
    files.key.chmod(0o644)
    assert bad(linted(machine=files)) == [
        ("warning", KEY, "every user of this machine can read this private key (mode 0644)")
    ]
    files.key.chmod(0o640)
    assert bad(linted(machine=files)) == []


def test_what_strict_verification_would_refuse_is_info(pki, linted):
    findings = linted(machine=machine(pki, key_identifiers=False))
    assert bad(findings) == []
    assert [finding.where for finding in findings if "X509_STRICT" in finding.what] == [CLIENT]


def test_a_file_used_twice_is_checked_once_and_names_both_keys(pki, linted):
    both = server(pki, purposes=("server", "client"), not_after=NOW + timedelta(days=3))
    [(level, where, _)] = bad(linted(gateway=both, machine=both))
    assert (level, where) == ("warning", f"{SERVER}, {CLIENT}")


def test_errors_come_first(pki, linted, tmp_path):
    levels = [
        finding.level
        for finding in linted(
            machine=pki.gateway, gateway=pki.backend_self_signed, client_ca=tmp_path / "no.pem"
        )
    ]
    assert levels == sorted(levels, key=list(Level).index)
    assert set(levels) == set(Level)


def renewed(name, *periods):
    """CAs with one name and key, as after renewals."""
    key = make_key("ec-p256")
    return [
        _ca_extensions(_builder(_name(name), _name(name), key, begin, end), key, key).sign(
            key, hashes.SHA256()
        )
        for begin, end in periods
    ]


PAST = (NOW - timedelta(days=90), NOW - timedelta(days=1))
PRESENT = (NOW - timedelta(days=3), NOW + timedelta(days=300))
FUTURE = (NOW + timedelta(days=3), NOW + timedelta(days=300))


@pytest.mark.parametrize("periods", [(PAST, PRESENT), (PRESENT, PAST), (PRESENT, FUTURE)])
def test_a_renewed_ca_of_the_same_key_beside_the_old_one_is_good(pki, linted, tmp_path, periods):
    cas = renewed("Renewed CA", *periods)
    findings = linted(client_ca=bundle(tmp_path, *cas, pki.authority.certificate))
    [(level, where, what)] = bad(findings)
    assert (level, where) == ("warning", CLIENT_CA)
    assert what.startswith(("expired", "is not valid before"))
    fine = [each for each in findings if each.subject == "CN=Renewed CA" and "until" in each.what]
    assert len(fine) == 1
    assert bad(linted(client_ca=bundle(tmp_path, *cas)))[0][0] == "warning"


def work_of(linted, tmp_path, count):
    """CPU seconds to check a file of this many CAs."""
    cas = [Authority.root(f"CA {number}").certificate for number in range(count)]
    file = bundle(tmp_path, *cas)
    begun = time.process_time()
    linted(client_ca=file, backend_ca=file)
    return time.process_time() - begun


def test_checking_a_ca_file_is_linear_in_its_size(linted, tmp_path):
    """Four times the CAs: 4 times the work if linear, 16 times if each is compared with
    all.
    """
    small = min(work_of(linted, tmp_path, 100) for _ in range(3))
    large = min(work_of(linted, tmp_path, 400) for _ in range(3))
    assert large < 8 * small


def test_ca_names_without_room_in_the_handshake_are_an_error(pki, tmp_path):
    cas = [Authority.root(f"CA {number} ".ljust(64, "x")).certificate for number in range(830)]
    file = bundle(tmp_path, *cas)

    def errors(send):
        shown = {"certificate": pki.gateway.certificate, "private_key": pki.gateway.key}
        route = Route(
            sni=("app.example.com",), pool="a", client_ca=file, send_ca_names=send, **shown
        )
        listener = Listener(name="https", listen=("127.0.0.1:0",), route=(route,))
        backend = Backend(route="w", address="127.0.0.1:1")
        machine = {"machine_certificate": pki.machine.certificate, "machine_key": pki.machine.key}
        pool = Pool(backend_ca=pki.ca, backend=(backend,), **machine)
        found = lint(Config(listener=(listener,), pool={"a": pool}), NOW)
        return [each for each in found if each.level is Level.ERROR]

    [error] = errors(send=True)
    assert "a TLS message has room for 65000" in error.what
    assert "send_ca_names = false" in error.remedy
    assert errors(send=False) == []
