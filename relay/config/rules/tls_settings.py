"""Rules of the TLS settings that routes and pools have in common.

Never: asks OpenSSL whether it knows a cipher (see `tls.ciphers`).
"""

from __future__ import annotations

from relay.config.listener_model import Route
from relay.config.pool_model import Pool
from relay.config.rules.problem_list import ProblemList

ROUTE_FILES = ("certificate", "private_key", "client_ca")
POOL_FILES = ("machine_certificate", "machine_key", "backend_ca")
TLS_KEYS = frozenset(
    {
        "partial_chain",
        "strict_x509",
        "max_chain_depth",
        "min_version",
        "max_version",
        "ciphers_tls12",
        "ciphersuites_tls13",
        "groups",
    }
)
FILE_REMEDIES = {
    "certificate": (
        "name the PEM file with the certificate shown to clients, leaf first, then its chain"
    ),
    "private_key": "name the PEM file with the key of certificate; it may be the same file",
    "client_ca": (
        "name the PEM file with the CAs of the clients' certificates; client verification"
        " cannot be turned off"
    ),
    "machine_certificate": (
        "name the PEM file with the certificate shown to the backends, leaf first, then its chain"
    ),
    "machine_key": "name the PEM file with the key of machine_certificate; it may be the same file",
    "backend_ca": (
        "name the PEM file with the CAs of the backends' certificates; backend verification"
        " cannot be turned off"
    ),
}


def check_expiry(found: ProblemList, where: str, settings: Route | Pool) -> None:
    """What the route or pool at this key path does with expired sessions."""
    if settings.at_expiry == "finish" and settings.expiry_grace_s:
        found.add(
            f"{where}.expiry_grace_s",
            'has no effect with at_expiry = "finish"',
            'remove it, or set at_expiry = "close"',
            compared=[f"{where}.at_expiry"],
        )


def check_tls(found: ProblemList, where: str, settings: Route | Pool) -> None:
    """The passphrase, ciphers and groups of the route or pool at this key path."""
    _passphrase(found, where, settings)
    for name in ("ciphers_tls12", "ciphersuites_tls13", "groups"):
        text = getattr(settings, name)
        if not text:
            found.add(
                f"{where}.{name}",
                "is empty, so no connection could be made",
                "remove it to use the default, or name at least one",
            )
        elif not (text.isascii() and text.isprintable()):
            # OpenSSL reads up to a NUL, and would not see what the relay appends.
            found.add(
                f"{where}.{name}",
                "contains characters that no cipher or group has in its name",
                "write OpenSSL's names, separated by colons",
            )
    if settings.min_version > settings.max_version:
        found.add(
            f"{where}.max_version",
            f'"{settings.max_version}" is older than min_version, "{settings.min_version}"',
            "raise it, or lower min_version",
            compared=[f"{where}.min_version"],
        )
    if settings.max_version == "TLSv1.2" and "ciphersuites_tls13" in settings.model_fields_set:
        found.add(
            f"{where}.ciphersuites_tls13",
            'has no effect with max_version = "TLSv1.2"',
            "remove it, or raise max_version",
            compared=[f"{where}.max_version"],
        )
    if settings.min_version == "TLSv1.3" and "ciphers_tls12" in settings.model_fields_set:
        found.add(
            f"{where}.ciphers_tls12",
            'has no effect with min_version = "TLSv1.3"',
            "remove it, or lower min_version",
            compared=[f"{where}.min_version"],
        )


def _passphrase(found: ProblemList, where: str, settings: Route | Pool) -> None:
    name = "private_key" if isinstance(settings, Route) else "machine_key"
    key = getattr(settings, name)
    if settings.key_passphrase_file is None:
        return
    if key is None:
        found.add(
            f"{where}.key_passphrase_file",
            f"has no effect without {name}",
            f"remove it, or set {name} to the encrypted key",
            compared=[f"{where}.{name}", f"{where}.mode"],
        )
    elif key == settings.key_passphrase_file:
        found.add(
            f"{where}.key_passphrase_file",
            f"is the same file as {name}",
            "name a file that has only the passphrase of the key",
            compared=[f"{where}.{name}"],
        )
