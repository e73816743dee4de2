"""Compares `issuer` in a route's `allow` and `deny` with the CAs in its client_ca.

An entry may also be for an intermediate that clients send, so an entry that matches no
CA is not a mistake by itself. Only what is surely one is reported.

Never: sees a client's certificate (see `tls.access_rules`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from relay.config.distinguished_name import NameKey, parse_name
from relay.config.explain import quoted
from relay.config.listener_model import Route
from relay.tls.certificates.certificate import Certificate, subject_of
from relay.tls.certificates.findings import Certificates, Finding, Level
from relay.tls.certificates.name_keys import key_of_name
from relay.tls.certificates.revocation_fields import SUBJECT_KEY_ID


def lint_access(where: str, route: Route, cas: Certificates) -> Iterator[Finding]:
    """Warn about entries in the wrong form, and about CAs that have no key id."""
    kinds = [kind for kind in type(route.allow).model_fields if getattr(route.allow, kind)]
    if route.accept_server_certificates and kinds == ["issuer"]:
        what = "with accept_server_certificates, lets in everybody who has a certificate of this CA"
        remedy = "name the clients, for example by san_dns"
        yield Finding(Level.WARNING, "", "", what, remedy, f"{where}.allow.issuer")
    subjects = {key_of_name(each.subject.public_bytes()): each for each in cas}
    by_key = False
    for key, table in (("allow", route.allow), ("deny", route.deny)):
        for index, text in enumerate(table.issuer):
            here = f"{where}.{key}.issuer[{index}]"
            if "=" in text:
                yield from _lint_name(here, text, subjects)
            else:
                by_key = True
                yield from _lint_key_id(here, text, cas)
    if by_key:
        for each in cas:
            if not each.has_extension(SUBJECT_KEY_ID) and not route.strict_x509:
                what = (
                    "has no subjectKeyIdentifier, so OpenSSL cannot compare the key id in"
                    " certificates that it issued: they may have that of another CA"
                )
                remedy = "reissue it with subjectKeyIdentifier, or set strict_x509 = true"
                subject = subject_of(each)
                file = str(route.client_ca)
                yield Finding(Level.WARNING, file, subject, what, remedy, f"{where}.client_ca")


def _lint_name(where: str, text: str, subjects: dict[NameKey, Certificate]) -> Iterator[Finding]:
    name = parse_name(text)
    meant = subjects.get(name[::-1])
    if name not in subjects and meant is not None:
        shown = meant.subject.rfc4514_string()
        what = (
            f"{quoted(text)} has the parts of a CA's name in the other order, so it matches nothing"
        )
        remedy = f"write {quoted(shown)}, with the most specific part first (RFC 4514)"
        yield Finding(Level.WARNING, "", "", what, remedy, where)


def _lint_key_id(where: str, text: str, cas: Certificates) -> Iterator[Finding]:
    given = bytes.fromhex(text.replace(":", ""))
    for each in cas:
        prints = (hashlib.sha1(each.der).digest(), hashlib.sha256(each.der).digest())  # noqa: S324
        if given in prints:
            identifier = (each.extension(SUBJECT_KEY_ID) or b"")[2:].hex(":").upper()
            what = (
                f"{quoted(text)} is the fingerprint of the CA {quoted(subject_of(each))}, and not"
                " its key id, so it matches nothing"
            )
            remedy = f"write {quoted(identifier or subject_of(each))}"
            yield Finding(Level.WARNING, "", "", what, remedy, where)
