"""Certificate, key and CA files: what is read, and what is refused."""

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from relay.config.listener_model import Listener, Route
from relay.config.model import Config
from relay.config.pool_model import Backend, Pool
from relay.demo.ca import Authority, LeafSpec, key_pem, to_pem
from relay.errors import ConfigError
from relay.tls.certificates.inventory import certificate_info, certificates_of
from relay.tls.certificates.keys import key_matches
from relay.tls.certificates.pem import load_authorities, load_key_pair
from relay.tls.certificates.pem_file import MAX_FILE_BYTES
from tests.support.pki import parsed
from tests.support.programs import output_of

WHERE, KEY_WHERE = "pool.a.machine_certificate", "pool.a.machine_key"


def problems_of(certificate, key):
    with pytest.raises(ConfigError) as caught:
        load_key_pair(WHERE, certificate, key)
    problems = caught.value.problems
    assert all(problem.remedy and "\n" not in str(problem) for problem in problems), problems
    assert {problem.where for problem in problems} <= {WHERE, KEY_WHERE}
    return [problem.what for problem in problems]


def test_a_pair_has_the_leaf_first_then_its_chain(pki):
    files = pki.client_intermediate_sent
    pair = load_key_pair(WHERE, files.certificate, files.key)
    assert [each.subject.rfc4514_string() for each in pair.chain] == [
        "CN=ingrid",
        "CN=Test Intermediate CA",
    ]
    assert pair.leaf is pair.chain[0]
    assert pair.file == str(files.certificate)
    assert key_matches(pair.leaf, pair.key)


def test_certificate_and_key_may_share_a_file_in_any_order(pki, tmp_path):
    issued = pki.client.issued
    for parts in (
        (key_pem(issued.key), to_pem([issued.certificate])),
        (to_pem([issued.certificate]), key_pem(issued.key)),
    ):
        file = tmp_path / "both.pem"
        file.write_bytes(b"subject=CN = alice\n" + b"\r\n".join(parts) + b"\nthe end\n")
        assert load_key_pair(WHERE, file, file).leaf == parsed(issued.certificate)


@pytest.mark.parametrize("key_type", ["ec-p256", "rsa-2048"])
def test_both_common_kinds_of_keys_are_read(pki, key_type):
    files = pki.write(pki.authority.issue(LeafSpec("kind", key_type=key_type)))
    assert load_key_pair(WHERE, files.certificate, files.key).chain == (
        parsed(files.issued.certificate),
    )


def test_missing_files_are_both_named(tmp_path):
    certificate, key = tmp_path / "no.pem", tmp_path / "no.key"
    assert problems_of(certificate, key) == [
        f"{certificate} does not exist",
        f"{key} does not exist",
    ]


def test_a_missing_file_of_both_is_named_once(tmp_path):
    file = tmp_path / "no.pem"
    assert problems_of(file, file) == [f"{file} does not exist"]


def test_a_directory_is_no_certificate(tmp_path):
    assert problems_of(tmp_path, tmp_path) == [f"{tmp_path} is a directory"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read")
def test_a_file_that_may_not_be_read_is_refused_as_such(pki):
    # Only a process without root can be refused; it reports through its exit code.
    directory = pki.directory / "closed"
    directory.mkdir(mode=0o755)
    file = pki.client.issued.write(directory / "closed.pem")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            file.chmod(0)
            os.setuid(65534)
            try:
                load_key_pair(WHERE, file, file)
            except ConfigError as error:
                code = 0 if "no permission to read" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_device_and_a_pipe_without_a_writer_are_refused_at_once(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for file in (Path("/dev/zero"), pipe):
        assert problems_of(file, file) == [f"{file} cannot be read: it is not a regular file"]


def test_a_file_that_cannot_be_a_pem_file_is_not_read_to_its_end(tmp_path):
    with (tmp_path / "big.pem").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    big = tmp_path / "big.pem"
    assert problems_of(big, big) == [f"{big} is larger than 16777216 bytes"]


def test_files_without_what_they_should_hold_are_both_named(pki):
    assert problems_of(pki.client.key, pki.client.certificate) == [
        f"{pki.client.key} has no PEM certificate in it",
        f"{pki.client.certificate} has no private key in it",
    ]


def test_a_file_is_named_by_its_own_configuration_key(pki, tmp_path):
    missing = tmp_path / "missing.pem"
    for where, key_where in (
        ("pool.a.machine_certificate", "pool.a.machine_key"),
        ("listener.https.route[0].certificate", "listener.https.route[0].private_key"),
    ):
        for certificate, key, named in (
            (missing, missing, where),
            (missing, pki.client.key, where),
            (pki.client.certificate, missing, key_where),
        ):
            with pytest.raises(ConfigError) as caught:
                load_key_pair(where, certificate, key)
            assert [each.where for each in caught.value.problems] == [named]


def test_der_is_recognised(pki, tmp_path):
    file = tmp_path / "client.der"
    file.write_bytes(pki.client.issued.certificate.public_bytes(Encoding.DER))
    with pytest.raises(ConfigError, match="openssl x509 -inform DER"):
        load_key_pair(WHERE, file, pki.client.key)


def test_a_damaged_certificate_is_named_by_its_number(pki, tmp_path):
    file = tmp_path / "damaged.pem"
    file.write_bytes(
        pki.client.certificate.read_bytes()
        + b"-----BEGIN CERTIFICATE-----\nMIIBAAAA\n-----END CERTIFICATE-----\n"
    )
    [what] = problems_of(file, pki.client.key)
    assert what.startswith(f"certificate 2 of 2 in {file} cannot be parsed")


def test_an_encrypted_key_is_refused_with_the_command_that_decrypts_it(pki, tmp_path):
    key = pki.client.issued.key
    file = tmp_path / "encrypted.key"
    for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
        file.write_bytes(key.private_bytes(Encoding.PEM, form, BestAvailableEncryption(b"secret")))
        assert problems_of(pki.client.certificate, file) == [
            f"the private key in {file} is encrypted"
        ]
        with pytest.raises(ConfigError, match="openssl pkey -in"):
            load_key_pair(WHERE, pki.client.certificate, file)


def test_a_damaged_key_is_refused(pki, tmp_path):
    file = tmp_path / "damaged.key"
    file.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    [what] = problems_of(pki.client.certificate, file)
    assert what.startswith(f"the private key in {file} cannot be parsed")


def test_a_key_of_another_certificate_is_refused_by_subject(pki):
    [what] = problems_of(pki.client.certificate, pki.machine.key)
    assert (
        what == f"the private key in {pki.machine.key} does not belong to the certificate"
        f' "CN=alice" in {pki.client.certificate}'
    )


@pytest.mark.parametrize(
    "make_key", [ed25519.Ed25519PrivateKey.generate, lambda: rsa.generate_private_key(65537, 2048)]
)
def test_a_key_of_another_algorithm_does_not_belong_either(pki, tmp_path, make_key):
    """OpenSSL accepts one, in case a second certificate follows."""
    file = tmp_path / "other.key"
    file.write_bytes(make_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ConfigError) as caught:
        load_key_pair("pool.main.machine_certificate", pki.client.certificate, file)
    [problem] = caught.value.problems
    assert "does not belong to the certificate" in problem.what


def test_more_than_one_key_is_refused(pki, tmp_path):
    file = tmp_path / "keys.pem"
    file.write_bytes(pki.client.key.read_bytes() + pki.machine.key.read_bytes())
    assert problems_of(pki.client.certificate, file) == [f"{file} has 2 private keys in it"]


def test_a_ca_before_the_leaf_is_refused_even_when_the_key_fits(pki, tmp_path):
    issued = pki.client_intermediate_sent.issued
    file = tmp_path / "turned.pem"
    file.write_bytes(to_pem([*issued.intermediates, issued.certificate]))
    [what] = problems_of(file, pki.client_intermediate_sent.key)
    assert (
        what == f'{file} does not start with its leaf: certificate 1 is "CN=Test Intermediate CA",'
        ' the key belongs to certificate 2, "CN=ingrid"'
    )
    order, mismatch = problems_of(file, pki.machine.key)
    assert 'certificate 1 is the CA "CN=Test Intermediate CA", the leaf is "CN=ingrid"' in order
    assert "does not belong" in mismatch


def test_authorities_are_in_the_files_order_without_duplicates(pki, tmp_path):
    file = tmp_path / "bundle.pem"
    both = [pki.authority.certificate, pki.foreign_authority.certificate]
    file.write_bytes(to_pem([*both, *both]))
    assert list(load_authorities(WHERE, file)) == list(map(parsed, both))


def test_a_ca_file_without_a_certificate_is_refused(pki):
    with pytest.raises(ConfigError, match="has no PEM certificate in it"):
        load_authorities(WHERE, pki.client.key)


def test_a_description_says_what_openssl_says(pki):
    info = certificate_info(parsed(pki.client.issued.certificate), "client.pem")
    said = output_of(
        "openssl",
        "x509",
        "-in",
        pki.client.certificate,
        "-noout",
        "-serial",
        "-subject",
        "-issuer",
        "-nameopt",
        "RFC2253",
    )
    assert said.split("\n")[:3] == [
        f"serial={info.serial_hex}",
        f"subject={info.subject}",
        f"issuer={info.issuer}",
    ]
    assert info.not_after_at - info.not_before_at == pytest.approx(365 * 86_400 + 3600, abs=1)


def configuration(pki, ca):
    route = Route(
        sni=("app.example.com",),
        pool="a",
        certificate=pki.gateway.certificate,
        private_key=pki.gateway.key,
        client_ca=ca,
    )
    pool = Pool(
        machine_certificate=pki.machine.certificate,
        machine_key=pki.machine.key,
        backend_ca=pki.ca,
        backend=(Backend(route="w", address="127.0.0.1:1"),),
    )
    return Config(
        listener=(Listener(name="https", listen=("127.0.0.1:0",), route=(route, route)),),
        pool={"a": pool},
    )


def test_every_configured_certificate_is_listed_once(pki):
    infos = certificates_of(configuration(pki, pki.ca))
    assert [(info.file, info.subject) for info in infos] == [
        (str(pki.gateway.certificate), "CN=gateway"),
        (str(pki.machine.certificate), "CN=relay machine"),
        (str(pki.ca), "CN=Test CA"),
    ]


def test_of_equal_subjects_the_first_to_expire_is_listed(pki, tmp_path):
    renewed = Authority.root(
        "Test CA", not_after=pki.authority.certificate.not_valid_after_utc.replace(year=2999)
    )
    file = tmp_path / "renewed.pem"
    file.write_bytes(to_pem([renewed.certificate, pki.authority.certificate]))
    listed = [info for info in certificates_of(configuration(pki, file)) if info.file == str(file)]
    assert listed == [certificate_info(parsed(pki.authority.certificate), str(file))]


def test_every_unreadable_file_is_a_problem_of_the_list(pki, tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        certificates_of(configuration(pki, tmp_path / "no.pem"))
