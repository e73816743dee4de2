"""Keys that only a provider of OpenSSL can load: their PEM, and what is said."""

from __future__ import annotations

import base64

import pytest

from relay.errors import ConfigError
from relay.files import Files
from relay.tls.certificates.passphrase import READ_BYTES
from relay.tls.certificates.pem import load_key_pair
from relay.tls.certificates.pem_blocks import key_blocks, read_blocks
from relay.tls.certificates.provider_keys import leave_to_children, load_from_now_on

WHERE = "pool.a.machine_certificate"
PROVIDED = ["TSS2 PRIVATE KEY", "PKCS#11 PROVIDER URI", "HSM/Key v1.0 (EC)"]


def pem(label, data=b"an opaque key"):
    text = base64.b64encode(data).decode()
    return f"-----BEGIN {label}-----\n{text}\n-----END {label}-----\n".encode()


@pytest.mark.parametrize("label", PROVIDED)
def test_an_unknown_label_is_for_a_provider(label):
    [block] = key_blocks(read_blocks(b"text\n" + pem(label) + pem("CERTIFICATE")))
    assert (block.label, block.data, block.for_provider) == (label, b"an opaque key", True)


@pytest.mark.parametrize("label", ["PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY"])
def test_a_key_in_the_file_is_not(label):
    [block] = key_blocks(read_blocks(pem("EC PARAMETERS") + pem(label)))
    assert (block.label, block.for_provider) == (label, False)


@pytest.mark.parametrize("label", ["CERTIFICATE", "X509 CRL", "PUBLIC KEY", "EC PARAMETERS"])
def test_known_labels_of_other_things_are_no_keys(label):
    assert key_blocks(read_blocks(pem(label))) == []


@pytest.mark.parametrize("label", PROVIDED)
def test_without_its_provider_the_key_is_one_line(pki, tmp_path, label):
    key = tmp_path / "key.pem"
    key.write_bytes(pem(label))
    with pytest.raises(ConfigError) as caught:
        load_key_pair(WHERE, pki.client.certificate, key)
    [problem] = caught.value.problems
    assert problem.what.startswith(f'the "{label}" in {key} is a key of an OpenSSL provider')
    assert "OPENSSL_CONF" in problem.remedy
    assert "\n" not in str(problem)


def test_the_supervisor_leaves_the_key_to_its_children(pki, tmp_path):
    """It hands the PEM and the PIN on, and loads nothing."""
    key, pin = tmp_path / "key.pem", tmp_path / "pin"
    key.write_bytes(pem("TSS2 PRIVATE KEY"))
    pin.write_bytes(b"1234\n")
    pin.chmod(0o600)
    files = Files()
    leave_to_children()
    try:
        pair = load_key_pair(WHERE, pki.client.certificate, key, files, pin)
    finally:
        load_from_now_on()
    assert pair.key is None
    assert pair.provider.passphrase == b"1234"
    assert "1234" not in repr(pair)
    assert files.contents[pin, READ_BYTES][0] == b"1234\n"
    with pytest.raises(ValueError, match="unsupported"):
        pair.provider.load()
