"""Keys that a passphrase protects: what decrypts them, and what each problem says."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from relay.config.listener_model import Listener, Route
from relay.config.model import Config
from relay.config.pool_model import Backend, Pool
from relay.errors import ConfigError
from relay.files import Files
from relay.tls.certificates.findings import Level
from relay.tls.certificates.lint import lint
from relay.tls.certificates.pem import load_key_pair
from relay.tls.certificates.pem_file import MAX_FILE_BYTES
from tests.support.programs import output_of

WHERE = "pool.a.machine_certificate"
PASSPHRASE_WHERE = "pool.a.key_passphrase_file"
SECRET = "correct horse battery"

KINDS = {
    "PKCS#8, AES": ["pkcs8", "-topk8", "-v2", "aes-256-cbc"],
    "PKCS#8, scrypt": ["pkcs8", "-topk8", "-scrypt"],
    "PKCS#8, DES3": ["pkcs8", "-topk8", "-v2", "des3"],
    "traditional, DES3": ["ec", "-des3"],
    "traditional, AES": ["ec", "-aes256"],
}


@pytest.fixture
def passphrase(tmp_path):
    return secret_file(tmp_path / "key.pass", f"{SECRET}\n")


def secret_file(file: Path, text: str | bytes) -> Path:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    file.chmod(0o600)
    return file


@pytest.fixture
def key(pki, tmp_path):
    return encrypted(pki, tmp_path, SECRET)


def encrypted(pki, directory, secret):
    data = pki.client.issued.key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(secret.encode())
    )
    return secret_file(directory / "encrypted.key", data)


def load(pki, key, passphrase, files=None):
    return load_key_pair(WHERE, pki.client.certificate, key, files, passphrase)


def problem_of(pki, key, passphrase):
    with pytest.raises(ConfigError) as caught:
        load(pki, key, passphrase)
    [problem] = caught.value.problems
    assert "\n" not in str(problem)
    assert problem.remedy
    assert SECRET not in str(problem)
    return problem


@pytest.mark.parametrize("kind", KINDS)
def test_every_usual_kind_of_encryption_is_decrypted(pki, tmp_path, passphrase, kind):
    text = output_of("openssl", *KINDS[kind], "-in", pki.client.key, "-passout", f"pass:{SECRET}")
    pair = load(pki, secret_file(tmp_path / "key.pem", text), passphrase)
    assert pair.encrypted
    assert pair.key.bits() == 256


@pytest.mark.parametrize(
    ("secret", "text"),
    [
        ("secret", b"secret"),
        ("secret", b"secret\n"),
        ("secret", b"secret\r\n"),
        ("secret\n", b"secret\n\n"),
        (" secret\t", b" secret\t\n"),
        ("secret\r", b"secret\r"),
        ("sécret", "sécret\n".encode()),
    ],
)
def test_exactly_one_line_end_does_not_count(pki, tmp_path, secret, text):
    key = encrypted(pki, tmp_path, secret)
    assert load(pki, key, secret_file(tmp_path / "pass", text)).encrypted


def test_a_wrong_passphrase_is_told_with_the_command_to_compare(pki, tmp_path, key):
    wrong = secret_file(tmp_path / "wrong", "incorrect\nhorse\n")
    problem = problem_of(pki, key, wrong)
    assert problem.where == PASSPHRASE_WHERE
    assert f"the passphrase in {wrong} does not decrypt the private key in {key}" in problem.what
    assert f"openssl pkey -in {key} -passin file:{wrong}" in problem.remedy
    assert "the file has 2 lines" in problem.remedy
    assert "incorrect" not in str(problem)
    assert "horse" not in str(problem)


def test_an_encrypted_key_needs_the_setting(pki, key):
    problem = problem_of(pki, key, None)
    assert problem.where == "pool.a.machine_key"
    assert problem.what == f"the private key in {key} is encrypted"
    assert "set key_passphrase_file" in problem.remedy


@pytest.mark.parametrize(
    ("text", "mode", "what"),
    [
        (None, 0, "cannot read {file}: No such file or directory"),
        (b"", 0o600, "{file} is empty"),
        (b"\n", 0o600, "{file} is empty"),
        (b"x" * 1025, 0o600, "{file} has more than 1024 bytes, the most that OpenSSL takes"),
        (b"secret", 0o604, "every user of this machine can read the passphrase in {file}"),
    ],
)
def test_a_file_that_holds_no_passphrase_is_one_line(pki, tmp_path, key, text, mode, what):
    file = tmp_path / "pass"
    if text is not None:
        secret_file(file, text).chmod(mode)
    problem = problem_of(pki, key, file)
    assert (problem.where, problem.what) == (PASSPHRASE_WHERE, what.format(file=file))


def test_a_directory_in_place_of_the_passphrase_is_one_line(pki, tmp_path, key):
    assert "cannot read" in problem_of(pki, key, tmp_path).what


def test_a_credential_is_named_as_it_is_configured(pki, tmp_path, key, monkeypatch):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    problem = problem_of(pki, key, tmp_path / "passphrase")
    assert f"credential:passphrase ({tmp_path}/passphrase)" in problem.what
    assert "LoadCredential=passphrase:FILE" in problem.remedy


def test_the_key_is_handed_on_decrypted_without_its_passphrase(pki, tmp_path, passphrase):
    """Building contexts from it takes no key derivation, and no passphrase."""
    both = tmp_path / "both.pem"
    key = encrypted(pki, tmp_path, SECRET)
    secret_file(both, key.read_bytes() + pki.client.certificate.read_bytes())
    files = Files()
    checked = load_key_pair(WHERE, both, both, files, passphrase)
    assert list(files.contents) == [(both, MAX_FILE_BYTES)]
    given = files.contents[both, MAX_FILE_BYTES][0]
    assert SECRET.encode() not in given
    assert b"ENCRYPTED" not in given
    built = load_key_pair(WHERE, both, both, Files(files.contents), passphrase)
    assert (built.chain, built.encrypted) == (checked.chain, False)
    assert files.read(both, MAX_FILE_BYTES)[0] == both.read_bytes()


def test_a_damaged_encrypted_key_says_so(pki, tmp_path, key, passphrase):
    damaged = secret_file(tmp_path / "damaged", key.read_bytes()[:-60])
    assert "was truncated" in problem_of(pki, damaged, passphrase).what


def test_two_routes_may_share_a_key_with_one_right_passphrase(pki, tmp_path, key, passphrase):
    """The right passphrase of one route does not hide the wrong one of another."""
    wrong = secret_file(tmp_path / "wrong", "wrong")
    findings = lint(config_of(pki, key, passphrase, wrong), datetime.now(UTC))
    wheres = [one.where for one in findings if "passphrase" in one.what]
    assert wheres == ["listener.https.route[1].key_passphrase_file"]


def test_a_passphrase_for_a_plain_key_is_a_warning(pki, passphrase, caplog):
    caplog.set_level(logging.DEBUG)
    config = config_of(pki, pki.both.key, passphrase, passphrase)
    [found] = [one for one in lint(config, datetime.now(UTC)) if "key_passphrase_file" in one.where]
    assert found.level is Level.WARNING
    assert "is not encrypted" in found.what
    assert SECRET not in caplog.text


def config_of(pki, key, *passphrases):
    routes = tuple(
        Route(
            sni=(f"a{index}.example.com",),
            pool="main",
            certificate=pki.both.certificate if key == pki.both.key else pki.client.certificate,
            private_key=key,
            key_passphrase_file=passphrase,
            client_ca=pki.ca,
        )
        for index, passphrase in enumerate(passphrases)
    )
    pool = Pool(
        machine_certificate=pki.machine.certificate,
        machine_key=pki.machine.key,
        backend_ca=pki.ca,
        backend=(Backend(route="b1", address="127.0.0.1:1"),),
    )
    listener = Listener(name="https", listen=("127.0.0.1:0",), route=routes)
    return Config(listener=(listener,), pool={"main": pool})
