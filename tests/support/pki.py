"""The certificates that tests use, written to files once per test run.

One CA has issued good ones and one of each faulty kind.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from relay.demo.ca import Authority, Leaf, LeafSpec, self_signed
from relay.tls.certificates.certificate import Certificate

GATEWAY_NAMES = ("app.example.com", "*.example.com", "localhost")
BACKEND_NAME = "backend.example.com"


@dataclass(frozen=True, slots=True)
class Files:
    """A certificate (leaf and chain) and its key as PEM files."""

    certificate: Path
    key: Path
    issued: Leaf


@dataclass(frozen=True, slots=True)
class Pki:
    """Everything below one directory. CA files are paths; the rest is `Files`."""

    directory: Path
    authority: Authority
    foreign_authority: Authority
    intermediate: Authority
    ca: Path
    foreign_ca: Path

    gateway: Files  # serverAuth, GATEWAY_NAMES, 127.0.0.1 and ::1
    machine: Files  # clientAuth
    both: Files  # serverAuth and clientAuth, GATEWAY_NAMES

    client: Files
    client_spiffe: Files  # ou=ops, DNS alice.corp, URI spiffe://corp/alice
    client_expired: Files
    client_not_yet_valid: Files
    client_foreign: Files
    client_wrong_purpose: Files  # serverAuth only
    client_intermediate_sent: Files
    client_intermediate_missing: Files
    client_self_signed: Files

    backend: Files  # BACKEND_NAME, localhost and 127.0.0.1
    backend_wrong_name: Files
    backend_expired: Files
    backend_not_yet_valid: Files
    backend_foreign: Files
    backend_wrong_purpose: Files  # clientAuth only
    backend_self_signed: Files

    def client_matrix(self) -> dict[str, Files | None]:
        """The certificates a client may present, by a word for each kind.

        None stands for no certificate.
        """
        return {
            "good": self.client,
            "none": None,
            "expired": self.client_expired,
            "not_yet_valid": self.client_not_yet_valid,
            "wrong_ca": self.client_foreign,
            "wrong_purpose": self.client_wrong_purpose,
            "intermediate_missing": self.client_intermediate_missing,
            "intermediate_sent": self.client_intermediate_sent,
            "self_signed": self.client_self_signed,
        }

    def backend_matrix(self) -> dict[str, Files]:
        """The certificates a backend may present, by a word for each kind."""
        return {
            "good": self.backend,
            "wrong_name": self.backend_wrong_name,
            "expired": self.backend_expired,
            "not_yet_valid": self.backend_not_yet_valid,
            "wrong_ca": self.backend_foreign,
            "wrong_purpose": self.backend_wrong_purpose,
            "self_signed": self.backend_self_signed,
        }

    def write(self, issued: Leaf, *, with_intermediates: bool = True) -> Files:
        """Write a certificate made for one test."""
        return write(
            self.directory,
            f"extra-{secrets.token_hex(4)}",
            issued,
            with_intermediates=with_intermediates,
        )


def write(directory: Path, name: str, issued: Leaf, *, with_intermediates: bool = True) -> Files:
    """Write NAME.pem and NAME.key."""
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    issued.write(certificate, key, with_intermediates=with_intermediates)
    return Files(certificate, key, issued)


def parsed(certificate: x509.Certificate) -> Certificate:
    """A certificate as relay has it after reading a file."""
    return Certificate.from_der(certificate.public_bytes(Encoding.DER))


def make_pki(directory: Path) -> Pki:
    """Make the whole matrix, all EC P-256, in about 50 ms."""
    now = datetime.now(UTC)
    long_ago, yesterday, tomorrow = (
        now - timedelta(days=60),
        now - timedelta(days=1),
        now + timedelta(days=1),
    )
    root, foreign = Authority.root("Test CA"), Authority.root("Foreign CA")
    below = root.intermediate("Test Intermediate CA")

    def files(name: str, issued: Leaf, *, with_intermediates: bool = True) -> Files:
        return write(directory, name, issued, with_intermediates=with_intermediates)

    def client(cn: str = "alice", **differences: object) -> LeafSpec:
        return LeafSpec(**{"cn": cn, "purposes": ("client",), **differences})

    def backend(cn: str = "backend", **differences: object) -> LeafSpec:
        return LeafSpec(
            **{
                "cn": cn,
                "dns": (BACKEND_NAME, "localhost"),
                "ip": ("127.0.0.1", "::1"),
                "purposes": ("server",),
                **differences,
            }
        )

    gateway_names = {"dns": GATEWAY_NAMES, "ip": ("127.0.0.1", "::1")}
    sent = below.issue(client("ingrid"))
    return Pki(
        directory=directory,
        authority=root,
        foreign_authority=foreign,
        intermediate=below,
        ca=root.write(directory / "ca.pem"),
        foreign_ca=foreign.write(directory / "foreign-ca.pem"),
        gateway=files(
            "gateway", root.issue(LeafSpec("gateway", purposes=("server",), **gateway_names))
        ),
        machine=files("machine", root.issue(client("relay machine"))),
        both=files(
            "both", root.issue(LeafSpec("gateway", purposes=("server", "client"), **gateway_names))
        ),
        client=files("client", root.issue(client())),
        client_spiffe=files(
            "client-spiffe",
            root.issue(client(ou="ops", dns=("alice.corp",), uri=("spiffe://corp/alice",))),
        ),
        client_expired=files(
            "client-expired", root.issue(client(not_before=long_ago, not_after=yesterday))
        ),
        client_not_yet_valid=files("client-not-yet-valid", root.issue(client(not_before=tomorrow))),
        client_foreign=files("client-foreign", foreign.issue(client("mallory"))),
        client_wrong_purpose=files(
            "client-wrong-purpose", root.issue(client(purposes=("server",)))
        ),
        client_intermediate_sent=files("client-intermediate-sent", sent),
        client_intermediate_missing=files(
            "client-intermediate-missing", sent, with_intermediates=False
        ),
        client_self_signed=files("client-self-signed", self_signed(client("selma"))),
        backend=files("backend", root.issue(backend())),
        backend_wrong_name=files(
            "backend-wrong-name", root.issue(backend(dns=("other.example.net",), ip=()))
        ),
        backend_expired=files(
            "backend-expired", root.issue(backend(not_before=long_ago, not_after=yesterday))
        ),
        backend_not_yet_valid=files(
            "backend-not-yet-valid", root.issue(backend(not_before=tomorrow))
        ),
        backend_foreign=files("backend-foreign", foreign.issue(backend())),
        backend_wrong_purpose=files(
            "backend-wrong-purpose", root.issue(backend(purposes=("client",)))
        ),
        backend_self_signed=files("backend-self-signed", self_signed(backend())),
    )
