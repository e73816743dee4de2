"""The CAs of one file in one OpenSSL store, which all contexts that trust them share.

For example, 500 routes that trust the same 400 CAs share one store. The store is not
changed after a context has got it.

Never: checks a CA (that is `tls.certificates.lint_cas`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from OpenSSL import SSL

from relay.tls.certificates.certificate import Certificate, Name
from relay.tls.certificates.configured import DEFAULT_RULES, ChainRules
from relay.tls.raw import Pointer, ffi, lib
from relay.tls.revocation.revoked_cas import revoked_cas
from relay.tls.revocation.revoked_set import RevokedSet
from relay.tls.trust import CaTrust

# Certificates per step; a step takes about 2 ms.
STEP = 50


class TrustedCas:
    """The CAs of one file, and the rules for the chains that lead to them.

    After `fill`, which works in steps, contexts can `use` them.
    """

    def __init__(self, rules: ChainRules = DEFAULT_RULES) -> None:
        self._rules = rules
        self._store: Pointer = ffi.gc(lib.X509_STORE_new(), lib.X509_STORE_free)
        partial = lib.X509_V_FLAG_PARTIAL_CHAIN if rules.partial_chain else 0
        strict = lib.X509_V_FLAG_X509_STRICT if rules.strict_x509 else 0
        lib.X509_STORE_set_flags(self._store, partial | strict)
        if rules.accept_server_certificates:
            # `tls.verification.VERIFY_EITHER_USE` checks the purpose instead.
            lib.X509_STORE_set_purpose(self._store, lib.X509_PURPOSE_ANY)
        self._named: dict[Name, Certificate] = {}  # one certificate of each name
        self.certificates: tuple[Certificate, ...] = ()
        self._trust = CaTrust()
        self._without: tuple[RevokedSet, CaTrust] | None = None

    def fill(self, certificates: Iterable[Certificate]) -> Iterator[None]:
        """Add the CAs. Yields between steps."""
        kept = []
        for number, certificate in enumerate(certificates, 1):
            kept.append(certificate)
            lib.X509_STORE_add_cert(self._store, certificate.pointer)
            self._named.setdefault(certificate.subject, certificate)
            if number % STEP == 0:
                yield
        lib.ERR_clear_error()
        self.certificates = tuple(kept)
        self._trust = self._describe(kept)
        yield

    def trust(self, revoked: RevokedSet | None = None) -> CaTrust:
        """Whom these CAs make trusted, without the CAs that are revoked themselves.

        Those stay in the store: so OpenSSL shows the whole chain of their peers, and
        the refusal can say which CA was revoked.
        """
        if revoked is None:
            return self._trust
        if self._without is None or self._without[0] is not revoked:
            gone = revoked_cas(self.certificates, revoked)
            kept = [each for each in self.certificates if each not in gone]
            trust = self._describe(kept, gone) if gone else self._trust
            self._without = revoked, trust
        return self._without[1]

    def _describe(self, kept: list[Certificate], gone: Iterable[Certificate] = ()) -> CaTrust:
        limits = valid_until(kept, partial=self._rules.partial_chain)
        return CaTrust.of(kept, limits, self._rules, gone)

    def use(self, context: SSL.Context) -> None:
        """Make a context trust these CAs and no others."""
        lib.X509_STORE_up_ref(self._store)
        # The context owns the reference.
        lib.SSL_CTX_set_cert_store(context._context, self._store)  # noqa: SLF001

    def ask_for(self, context: SSL.Context) -> None:
        """List these CAs in the context's certificate requests."""
        for certificate in self._named.values():
            lib.SSL_CTX_add_client_CA(context._context, certificate.pointer)  # noqa: SLF001


def valid_until(authorities: Iterable[Certificate], *, partial: bool = False) -> dict[bytes, float]:
    """By subject DER: until when a CA and the CAs above it in the file are valid.

    `partial`: a chain ends at the first of them, so the CAs above it do not count.
    """
    paths: dict[bytes, list[tuple[float, bytes]]] = {}
    for each in authorities:
        limit = each.not_valid_after_utc.timestamp()
        subject = each.subject.public_bytes()
        issuer = subject if partial else each.issuer.public_bytes()
        paths.setdefault(subject, []).append((limit, issuer))
    forever = float("inf")
    # A path ends at a root, or at a CA whose issuer is not in the file.
    found = dict.fromkeys(paths, forever)
    below: dict[bytes, set[bytes]] = {}
    for subject, several in paths.items():
        for _, issuer in several:
            if issuer != subject and issuer in paths:
                below.setdefault(issuer, set()).add(subject)
    # Limits only get lower, so this ends. The newest certificate of a CA counts.
    stale = deque(paths)
    while stale:
        subject = stale.popleft()
        limit = max(
            min(end, forever if issuer == subject else found.get(issuer, forever))
            for end, issuer in paths[subject]
        )
        if limit < found[subject]:
            found[subject] = limit
            stale += below.get(subject, ())
    return found
