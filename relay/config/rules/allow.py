"""Rules of a route's `allow`: each entry must be able to match a certificate.

Never: sees a certificate (see `tls.identity`).
"""

from __future__ import annotations

import re

from relay.config.address import host_name_fault
from relay.config.explain import quoted
from relay.config.model import Allow
from relay.config.rules.problem_list import ProblemList

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


def check_allow(found: ProblemList, where: str, allow: Allow, *, given: bool) -> None:
    """The `allow` at this key path; `given`: the file has one."""
    # An empty list would allow every certificate of the CA, and nothing would show it.
    replaced = any(path.startswith(f"{where}.") for path in found.replaced)
    if given and not replaced and not any(getattr(allow, kind) for kind in Allow.model_fields):
        found.add(
            where,
            "lists nothing, which would allow every client",
            "name at least one certificate to allow, or remove allow to accept every certificate"
            " of client_ca",
        )
    for index, text in enumerate(allow.san_uri):
        if any("**" in segment and segment != "**" for segment in text.split("/")):
            found.add(
                f"{where}.san_uri[{index}]",
                f"{quoted(text)} has a ** that is not a whole path segment",
                'write "*" for a part of a segment, and "/**" for whole segments',
            )
    for kind in ("cn", "san_uri", "ou"):
        for index, text in enumerate(getattr(allow, kind)):
            if not text or not text.isprintable():
                found.add(
                    f"{where}.{kind}[{index}]",
                    f"{quoted(text)} cannot match any certificate",
                    "write the text as it is in the certificate, or remove this entry",
                )
    for index, pattern in enumerate(allow.san_dns):
        name = pattern.removeprefix("*.")
        why = "has a * that is not its whole first label" if "*" in name else host_name_fault(name)
        if why:
            found.add(
                f"{where}.san_dns[{index}]",
                f"{quoted(pattern)} {why}",
                'write a host name, or "*.example.com" for all names with one more label',
            )
    for index, fingerprint in enumerate(allow.fingerprint_sha256):
        if not _FINGERPRINT.fullmatch(fingerprint):
            found.add(
                f"{where}.fingerprint_sha256[{index}]",
                f"{quoted(fingerprint)} is not a SHA-256 fingerprint: it has {len(fingerprint)}"
                " characters without colons",
                "write 64 hexadecimal digits, with or without colons; see: openssl x509 -in FILE"
                " -noout -fingerprint -sha256",
            )
