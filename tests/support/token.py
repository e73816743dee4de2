"""A PKCS#11 token in software, with keys that never leave it."""

from __future__ import annotations

import base64
import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509.oid import ExtensionOID

from relay.demo.ca import Authority, LeafSpec, to_pem
from tests.support.pki import Files
from tests.support.programs import find, output_of

PIN = "open sesame"
# Where distributions install the provider, and where "meson install" does.
_DIRECTORIES = (
    "/usr/lib/x86_64-linux-gnu/ossl-modules",
    "/usr/lib/aarch64-linux-gnu/ossl-modules",
    "/usr/lib64/ossl-modules",
    "/usr/local/lib/ossl-modules",
)
_PROVIDERS = [Path(directory, "pkcs11.so") for directory in _DIRECTORIES]
_MODULES = [
    Path(directory, "libsofthsm2.so")
    for directory in ("/usr/lib/softhsm", "/usr/lib64/pkcs11", "/usr/lib64/softhsm")
]
PROVIDER = next(filter(Path.exists, _PROVIDERS), None)
MODULE = next(filter(Path.exists, _MODULES), None)

needs_token = pytest.mark.skipif(
    not (PROVIDER and MODULE and find("softhsm2-util") and find("pkcs11-tool")),
    reason="pkcs11-provider, softhsm2 or pkcs11-tool is not installed",
)

# docs/operation.md shows the same.
_CONFIGURATION = f"""
openssl_conf = init
[init]
providers = providers
ssl_conf = ssl
[providers]
default = built_in
pkcs11 = pkcs11
[built_in]
activate = 1
[pkcs11]
module = {PROVIDER}
pkcs11-module-path = {MODULE}
activate = 1
[ssl]
system_default = system_default
[system_default]
NumTickets = 1
"""


class Token:
    """One token, and what a process needs to use it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._keys = 0
        tokens = directory / "tokens"
        tokens.mkdir()
        settings = directory / "softhsm2.conf"
        settings.write_text(f"directories.tokendir = {tokens}\nlog.level = ERROR\n")
        self._own = {"SOFTHSM2_CONF": str(settings)}
        configuration = directory / "openssl.cnf"
        configuration.write_text(_CONFIGURATION)
        self.environment = {**self._own, "OPENSSL_CONF": str(configuration)}
        self.pin_file = directory / "pin"
        self.pin_file.write_text(f"{PIN}\n")
        self.pin_file.chmod(0o600)
        given = ("--label", "relay", "--pin", PIN, "--so-pin", PIN)
        output_of("softhsm2-util", "--init-token", "--free", *given, env=self._own)

    def issue(self, authority: Authority, spec: LeafSpec) -> Files:
        """A certificate for a new key of the token, and the PEM that names the key."""
        self._keys += 1
        label, number = f"key{self._keys}", f"{self._keys:02}"
        public = self._directory / f"{label}.der"
        self._tool("--keypairgen", "--key-type", "EC:prime256v1", "--label", label, "--id", number)
        self._tool("--read-object", "--type", "pubkey", "--label", label, "-o", public)
        certificate = self._directory / f"{label}.pem"
        certificate.write_bytes(to_pem([_certify(authority, spec, public.read_bytes())]))
        return Files(certificate, self._name_key(label), authority.issue(spec))

    def _name_key(self, label: str) -> Path:
        """A "PKCS#11 PROVIDER URI" file that names a key of this token."""
        uri = f"pkcs11:token=relay;object={label};type=private".encode()
        parts = ((0x1A, b"PKCS#11 Provider URI v1.0"), (0x0C, uri))
        body = b"".join(bytes((tag, len(text))) + text for tag, text in parts)
        text = base64.encodebytes(bytes((0x30, len(body))) + body).decode()
        file = self._directory / f"{label}.key"
        name = "PKCS#11 PROVIDER URI"
        file.write_text(f"-----BEGIN {name}-----\n{text}-----END {name}-----\n")
        file.chmod(0o600)
        return file

    def _tool(self, *arguments: str | Path) -> None:
        token = ("--module", str(MODULE), "--token-label", "relay", "--login", "--pin", PIN)
        output_of("pkcs11-tool", *token, *arguments, env=self._own)


def _certify(authority: Authority, spec: LeafSpec, public_key: bytes) -> x509.Certificate:
    """A certificate as the authority issues it, but for a key that it does not have."""
    like = authority.issue(spec).certificate
    builder = (
        x509.CertificateBuilder()
        .subject_name(like.subject)
        .issuer_name(like.issuer)
        .public_key(load_der_public_key(public_key))
        .serial_number(like.serial_number)
        .not_valid_before(like.not_valid_before_utc)
        .not_valid_after(like.not_valid_after_utc)
    )
    for extension in like.extensions:
        if extension.oid != ExtensionOID.SUBJECT_KEY_IDENTIFIER:
            builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(authority.key, hashes.SHA256())


@contextlib.contextmanager
def software_token() -> Iterator[Token]:
    """A fresh token, until the block ends."""
    directory = Path(tempfile.mkdtemp(prefix="relay-token-"))
    try:
        yield Token(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
