"""The CAs of one file, made ready once for all contexts that trust them.

500 routes that trust the same 400 CAs share one OpenSSL store. It is never changed once a
context has it.

Never: judges a CA (that is `tls.certificates.lint_cas`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from OpenSSL import SSL

from relay.tls.certificates.certificate import Certificate, Name
from relay.tls.raw import Pointer, ffi, lib

# This many certificates are a step: about 2 ms.
STEP = 50


class TrustedCas:
    """One file's CAs. `fill` goes through them in steps; after it contexts can `use` them."""

    def __init__(self) -> None:
        self._store: Pointer = ffi.gc(lib.X509_STORE_new(), lib.X509_STORE_free)
        self._named: dict[Name, Certificate] = {}  # one certificate of each name
        self.valid_until: dict[bytes, float] = {}

    def fill(self, certificates: Iterable[Certificate]) -> Iterator[None]:
        """Take them in. Yields between steps."""
        kept = []
        for number, certificate in enumerate(certificates, 1):
            kept.append(certificate)
            lib.X509_STORE_add_cert(self._store, certificate.pointer)
            self._named.setdefault(certificate.subject, certificate)
            if number % STEP == 0:
                yield
        lib.ERR_clear_error()
        self.valid_until = valid_until(kept)
        yield

    def use(self, context: SSL.Context) -> None:
        """Make a context trust these CAs and no others."""
        lib.X509_STORE_up_ref(self._store)
        lib.SSL_CTX_set_cert_store(context._context, self._store)  # noqa: SLF001  it owns that reference

    def ask_for(self, context: SSL.Context) -> None:
        """Make a server name these CAs when it asks clients for their certificates."""
        for certificate in self._named.values():
            lib.SSL_CTX_add_client_CA(context._context, certificate.pointer)  # noqa: SLF001


def valid_until(authorities: Iterable[Certificate]) -> dict[bytes, float]:
    """For every CA of a file: until when it and the CAs above it in the file are valid, by the DER of its subject."""
    ways: dict[bytes, list[tuple[float, bytes]]] = {}
    for each in authorities:
        limit = each.not_valid_after_utc.timestamp()
        subject, issuer = each.subject.public_bytes(), each.issuer.public_bytes()
        ways.setdefault(subject, []).append((limit, issuer))
    forever = float("inf")
    # A root, and a CA whose issuer is not in the file, end with themselves.
    found = dict.fromkeys(ways, forever)
    below: dict[bytes, set[bytes]] = {}
    for subject, several in ways.items():
        for _, issuer in several:
            if issuer != subject and issuer in ways:
                below.setdefault(issuer, set()).add(subject)
    # Limits only become lower. A CA that was renewed under its old name counts with its newest.
    stale = deque(ways)
    while stale:
        subject = stale.popleft()
        limit = max(
            min(end, forever if issuer == subject else found.get(issuer, forever))
            for end, issuer in ways[subject]
        )
        if limit < found[subject]:
            found[subject] = limit
            stale += below.get(subject, ())
    return found
