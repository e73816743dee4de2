"""Keys, chains and CAs: reads the files a configuration names, and says everything that is wrong with one at once.

Never: judges whether a certificate is fit for its task (that is `tls.fitness`), keeps a key it was not asked for, or builds a TLS context.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from relay.config.files import Files
from relay.config.model import Config
from relay.config.places import listener_places, pool_place
from relay.errors import ConfigError, Problem

# Debian's whole CA bundle is 220 kB; anything far beyond is not what was meant, and would only take memory.
MAX_FILE_BYTES = 16 * 1024 * 1024

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----\s.*?-----END \1-----", re.DOTALL)
_ORDER = "put the leaf first, then its issuer, and so on"
_CERTIFICATES = {b"CERTIFICATE", b"X509 CERTIFICATE"}


@dataclass(frozen=True, slots=True)
class KeyPair:
    """What one side of TLS shows: `chain[0]` is the leaf that `key` belongs to, the rest is sent after it in the file's order."""

    file: str
    chain: tuple[x509.Certificate, ...]
    key: PrivateKeyTypes = field(repr=False)

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate that the key belongs to."""
        return self.chain[0]


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """One certificate of a configured file, for metrics and tables. Names follow RFC 4514, instants are Unix time."""

    file: str
    subject: str
    issuer: str
    serial_hex: str
    not_before_at: float
    not_after_at: float


@dataclass(frozen=True, slots=True)
class PairUse:
    """One place of the configuration that names a certificate and its key."""

    where: str
    certificate: Path
    private_key: Path
    sni: tuple[str, ...] = ()
    pool: str = ""  # not empty: it is that pool's machine certificate


@dataclass(frozen=True, slots=True)
class AuthorityUse:
    """One place of the configuration that names a CA file; `pool` is set for a backend_ca, empty for a client_ca."""

    where: str
    file: Path
    pool: str = ""


def pairs_of(config: Config) -> Iterator[PairUse]:
    """Every certificate with its key, in the configuration's order; a key that is not named is in the certificate's file."""
    for where, listener in zip(listener_places([each.name for each in config.listener]), config.listener, strict=True):
        for index, route in enumerate(listener.route):
            if route.certificate is not None:
                yield PairUse(f"{where}.route[{index}].certificate", route.certificate, route.private_key or route.certificate, sni=route.sni)
    for name, pool in config.pool.items():
        if pool.machine_certificate is not None:
            yield PairUse(f"{pool_place(name)}.machine_certificate", pool.machine_certificate, pool.machine_key or pool.machine_certificate, pool=name)


def authorities_of(config: Config) -> Iterator[AuthorityUse]:
    """Every CA file, in the configuration's order."""
    for where, listener in zip(listener_places([each.name for each in config.listener]), config.listener, strict=True):
        for index, route in enumerate(listener.route):
            if route.client_ca is not None:
                yield AuthorityUse(f"{where}.route[{index}].client_ca", route.client_ca)
    for name, pool in config.pool.items():
        if pool.backend_ca is not None:
            yield AuthorityUse(f"{pool_place(name)}.backend_ca", pool.backend_ca, pool=name)


def load_key_pair(where: str, certificate: Path, private_key: Path, files: Files | None = None) -> KeyPair:
    """Read a certificate file (leaf first, then its chain) and the key of the leaf, which may be in the same file.

    Raises ConfigError with every problem found in the two files.
    """
    problems: list[Problem] = []
    files = files or Files()
    chain = _read_chain(where, certificate, problems, files)
    key = _read_key(where, private_key, certificate, problems, files)
    if chain and key is not None:
        problems += _mismatch(where, certificate, private_key, chain, key)
    if problems or key is None:
        raise ConfigError(problems)
    return KeyPair(str(certificate), chain, key)


def load_authorities(where: str, file: Path, files: Files | None = None) -> tuple[x509.Certificate, ...]:
    """Read a PEM bundle of CA certificates, at least one, in the file's order without duplicates. Raises ConfigError."""
    problems: list[Problem] = []
    chain = _read_chain(where, file, problems, files or Files())
    if problems:
        raise ConfigError(problems)
    return tuple(dict.fromkeys(chain))


def describe(certificate: x509.Certificate, file: str) -> CertificateInfo:
    """The facts of one certificate that operators search for."""
    return CertificateInfo(
        file=file,
        subject=name_of(certificate.subject),
        issuer=name_of(certificate.issuer),
        serial_hex=serial_hex(certificate),
        not_before_at=certificate.not_valid_before_utc.timestamp(),
        not_after_at=certificate.not_valid_after_utc.timestamp(),
    )


def certificates_of(config: Config, files: Files | None = None) -> tuple[CertificateInfo, ...]:
    """Every certificate in every configured file, once per file and subject: of namesakes, as after a CA's renewal, the one that expires first.

    Raises ConfigError with the problems of every file.
    """
    problems: list[Problem] = []
    found: dict[tuple[str, str], CertificateInfo] = {}
    files = files or Files()
    named = {use.certificate: use.where for use in pairs_of(config)} | {use.file: use.where for use in authorities_of(config)}
    for file, where in named.items():
        for certificate in _read_chain(where, file, problems, files):
            info = describe(certificate, str(file))
            known = found.get((info.file, info.subject))
            if known is None or info.not_after_at < known.not_after_at:
                found[info.file, info.subject] = info
    if problems:
        raise ConfigError(problems)
    return tuple(found.values())


def name_of(name: x509.Name) -> str:
    """A subject or issuer as an RFC 4514 string."""
    return name.rfc4514_string()


def serial_hex(certificate: x509.Certificate) -> str:
    """The serial number as `openssl x509 -serial` prints it: upper-case hexadecimal, whole bytes."""
    digits = f"{abs(certificate.serial_number):X}"
    return ("-" if certificate.serial_number < 0 else "") + ("0" if len(digits) % 2 else "") + digits


def _read(where: str, file: Path, problems: list[Problem], files: Files) -> bytes | None:
    try:
        data, _ = files.read(file, MAX_FILE_BYTES)
    except IsADirectoryError:
        problems.append(Problem(where, f"{file} is a directory", "name the PEM file in it"))
    except FileNotFoundError:
        problems.append(Problem(where, f"{file} does not exist", "create it, or correct the path (relative paths start at the configuration file)"))
    except PermissionError:
        problems.append(Problem(where, f"{file} may not be read by this user", "give the user that starts the relay read permission, or start it as root with relay.user set"))
    except OSError as error:
        problems.append(Problem(where, f"{file} cannot be read: {error.strerror}", "name a PEM file"))
    else:
        if len(data) <= MAX_FILE_BYTES:
            return data
        problems.append(Problem(where, f"{file} is larger than {MAX_FILE_BYTES} bytes", "name a PEM file"))
    return None


def _blocks(data: bytes) -> list[tuple[bytes, bytes]]:
    return [(match[1], match[0]) for match in _BLOCK.finditer(data)]


def _read_chain(where: str, file: Path, problems: list[Problem], files: Files) -> tuple[x509.Certificate, ...]:
    data = _read(where, file, problems, files)
    if data is None:
        return ()
    chain = []
    blocks = [pem for label, pem in _blocks(data) if label in _CERTIFICATES]
    for number, pem in enumerate(blocks, 1):
        try:
            chain.append(_parse_certificate(pem))
        except (ValueError, UnsupportedAlgorithm) as error:
            problems.append(Problem(where, f"certificate {number} of {len(blocks)} in {file} cannot be parsed: {_one_line(error)}", "export it again as PEM"))
    if not blocks:
        problems.append(Problem(where, f"{file} has no PEM certificate in it", _advice(data, "name the file that has the CERTIFICATE block")))
    return tuple(chain)


def _parse_certificate(pem: bytes) -> x509.Certificate:
    with warnings.catch_warnings():
        # Certificates that break RFC 5280 in harmless ways load with a deprecation warning; fitness judges them.
        warnings.simplefilter("ignore")
        certificate = x509.load_pem_x509_certificate(pem)
        # Names, dates and extensions are parsed on first use: a certificate that fails there must fail here.
        _ = certificate.subject.rfc4514_string(), certificate.issuer.rfc4514_string(), certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.public_key()
    return certificate


def _read_key(where: str, file: Path, certificate: Path, problems: list[Problem], files: Files) -> PrivateKeyTypes | None:
    # What is wrong with reading a file of both was said about the certificate.
    data = _read(where, file, [] if file == certificate else problems, files)
    if data is None:
        return None
    keys = [(label, pem) for label, pem in _blocks(data) if label.endswith(b"PRIVATE KEY")]
    if not keys:
        remedy = "set private_key (of a pool: machine_key), or append the key to the certificate file" if file == certificate else "name the file that has the PRIVATE KEY block"
        problems.append(Problem(where, f"{file} has no private key in it", _advice(data, remedy)))
        return None
    if len(keys) > 1:
        problems.append(Problem(where, f"{file} has {len(keys)} private keys in it", "leave only the one that belongs to the certificate"))
        return None
    label, pem = keys[0]
    if label.startswith(b"ENCRYPTED") or b"Proc-Type: 4,ENCRYPTED" in pem:
        problems.append(Problem(where, f"the private key in {file} is encrypted", f"decrypt it with: openssl pkey -in {file} -out NEW_FILE, and protect NEW_FILE with chmod 600"))
        return None
    try:
        return load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        problems.append(Problem(where, f"the private key in {file} cannot be parsed: {_one_line(error)}", "export it again with openssl pkey"))
        return None


def _mismatch(where: str, certificate: Path, private_key: Path, chain: tuple[x509.Certificate, ...], key: PrivateKeyTypes) -> Iterator[Problem]:
    own = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for position, candidate in enumerate(chain):
        try:
            same = candidate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == own
        except (ValueError, UnsupportedAlgorithm):
            same = False
        if same:
            if position:
                first = name_of(chain[0].subject)
                what = f'{certificate} does not start with its leaf: certificate 1 is "{first}", the key belongs to certificate {position + 1}, "{name_of(candidate.subject)}"'
                yield Problem(where, what, _ORDER)
            return
    if len(chain) > 1 and _is_ca(chain[0]) and not all(map(_is_ca, chain)):
        leaf = next(candidate for candidate in chain if not _is_ca(candidate))
        what = f'{certificate} does not start with its leaf: certificate 1 is the CA "{name_of(chain[0].subject)}", the leaf is "{name_of(leaf.subject)}"'
        yield Problem(where, what, _ORDER)
    what = f'the private key in {private_key} does not belong to the certificate "{name_of(chain[0].subject)}" in {certificate}'
    yield Problem(where, what, "name the key it was issued for, or issue a certificate for this key")


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False


def _advice(data: bytes, otherwise: str) -> str:
    if b"-----BEGIN TRUSTED CERTIFICATE-----" in data:
        return "it is OpenSSL's TRUSTED CERTIFICATE format; convert it with: openssl x509 -in FILE -out NEW_FILE"
    if data.startswith(b"\x30") and b"-----BEGIN" not in data:
        return "it looks like DER or PKCS#12; convert it with openssl x509 -inform DER, openssl pkey -inform DER or openssl pkcs12 -nodes"
    return otherwise


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
