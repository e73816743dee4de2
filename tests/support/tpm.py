"""A TPM 2.0 in software, with keys that only it can use."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_public_key,
)
from cryptography.x509.oid import NameOID

from relay.demo.ca import to_pem
from tests.support.gateway import wait_until
from tests.support.pki import BACKEND_NAME, Files
from tests.support.ports import held_port
from tests.support.programs import NAME, find, output_of

# Where Debian and Fedora have the provider of tpm2-openssl.
_PROVIDERS = (
    "/usr/lib/x86_64-linux-gnu/ossl-modules/tpm2.so",
    "/usr/lib/aarch64-linux-gnu/ossl-modules/tpm2.so",
    "/usr/lib64/ossl-modules/tpm2.so",
)
PROVIDER = next((path for path in _PROVIDERS if Path(path).exists()), "")

needs_tpm = pytest.mark.skipif(
    not PROVIDER or find("swtpm") is None or find("tpm2_getcap") is None,
    reason="swtpm, tpm2-openssl or tpm2-tools is not installed",
)

# Also in docs/operation.md.
CONFIGURATION = f"""
openssl_conf = init
[init]
providers = providers
alg_section = algorithms
ssl_conf = ssl
[providers]
default = built_in
tpm2 = tpm2
[built_in]
activate = 1
[tpm2]
module = {PROVIDER}
activate = 1
[algorithms]
default_properties = ?tpm2.signature=yes
[ssl]
system_default = system_default
[system_default]
NumTickets = 1
"""


class Tpm:
    """One running swtpm, and what a process needs to use it."""

    def __init__(self, directory: Path, tcti: str) -> None:
        self.directory = directory
        self.tcti = tcti
        self.configuration = directory / "openssl.cnf"
        self.configuration.write_text(CONFIGURATION)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process that uses the TPM."""
        return {
            "OPENSSL_CONF": str(self.configuration),
            "TPM2OPENSSL_TCTI": self.tcti,
            "TSS2_LOG": "all+NONE",
        }

    def make_key(self, name: str = "tpm", auth: str = "") -> Path:
        """A new EC key in a "TSS2 PRIVATE KEY" file."""
        file = self.directory / f"{name}.key"
        options = ["-pkeyopt", f"user-auth:{auth}"] if auth else []
        self._openssl(
            "genpkey", "-algorithm", "EC", "-pkeyopt", "group:P-256", *options, "-out", file
        )
        file.chmod(0o600)
        return file

    def public_key(self, key: Path, auth: str = "") -> EllipticCurvePublicKey:
        """The public half of a key."""
        options = ["-passin", f"pass:{auth}"] if auth else []
        text = self._openssl("pkey", "-in", key, "-pubout", *options)
        found = load_pem_public_key(text.encode())
        assert isinstance(found, EllipticCurvePublicKey)
        return found

    def _openssl(self, command: str, *arguments: str | Path) -> str:
        return output_of(
            "openssl",
            command,
            *("-provider", "tpm2", "-provider", "default", "-propquery", "?provider=tpm2"),
            *arguments,
            env={"TPM2OPENSSL_TCTI": self.tcti},
        )


@contextlib.contextmanager
def running_tpm() -> Iterator[Tpm]:
    """A fresh TPM, until the block ends."""
    directory = Path(tempfile.mkdtemp(prefix="relay-tpm-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        port = stack.enter_context(_two_held_ports())
        control = port + 1  # where the TCTI looks for it
        swtpm = subprocess.Popen(
            [
                find("swtpm") or "swtpm",
                *("socket", "--tpm2", "--tpmstate", f"dir={directory}"),
                *("--server", f"type=tcp,port={port},bindaddr=127.0.0.1"),
                *("--ctrl", f"type=tcp,port={control},bindaddr=127.0.0.1"),
                *("--flags", "not-need-init,startup-clear"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(_end, swtpm)
        wait_until("swtpm listens", lambda: _listens(control))
        yield Tpm(directory, f"swtpm:host=127.0.0.1,port={port}")


class Ed25519Ca:
    """A CA whose signatures no TPM is asked about.

    tpm2-openssl also sends the signatures of peers to the TPM, if it knows their kind,
    and that has no room for the keys of a whole chain.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = Ed25519PrivateKey.generate()
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Ed25519 CA")])
        ca = x509.BasicConstraints(ca=True, path_length=None)
        built = self._builder("Ed25519 CA", self._key.public_key()).add_extension(ca, critical=True)
        self.file = self._write("ca", built)

    def issue(
        self, cn: str, purpose: x509.ObjectIdentifier, public_key: EllipticCurvePublicKey | None
    ) -> Files:
        """A certificate for localhost. Without a public key, it gets an Ed25519 key."""
        key = self._directory / f"{cn}.key"
        if public_key is None:
            made = Ed25519PrivateKey.generate()
            key.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        names = x509.SubjectAlternativeName([x509.DNSName(BACKEND_NAME), x509.DNSName(NAME)])
        built = (
            self._builder(cn, public_key or made.public_key())
            .add_extension(names, critical=False)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        )
        return Files(self._write(cn, built), key, None)

    def _builder(self, cn: str, public_key: CertificatePublicKeyTypes) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, cn)]))
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=90))
        )

    def _write(self, name: str, built: x509.CertificateBuilder) -> Path:
        file = self._directory / f"{name}.pem"
        file.write_bytes(to_pem([built.sign(self._key, None)]))
        return file


@contextlib.contextmanager
def _two_held_ports() -> Iterator[int]:
    """A free port whose successor is free, too."""
    for _ in range(100):
        with held_port() as port, socket.socket() as next_one:
            next_one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                next_one.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            yield port
            return
    raise AssertionError("no two free ports follow each other")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.wait(20)
