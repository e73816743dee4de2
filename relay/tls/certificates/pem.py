"""Keys, chains and CAs: reads the files a configuration names, and says everything that is wrong with one at once.

Never: judges whether a certificate is fit for its task (that is `tls.certificates.lint`), keeps a key it was not asked for, or builds a TLS context.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from OpenSSL.crypto import PKey

from relay.config.key_path import listener_paths, pool_path
from relay.config.model import Config
from relay.core.untrusted import clip
from relay.errors import ConfigError, Problem
from relay.files import Files
from relay.tls.certificates.certificate import Certificate, Name
from relay.tls.certificates.der import DerError, read_certificate
from relay.tls.certificates.extensions import has_ca_flag
from relay.tls.certificates.keys import key_matches, parse_key
from relay.tls.certificates.pem_blocks import read_blocks, remedy_for

# Debian's whole CA bundle is 220 kB; anything far beyond is not what was meant, and would only take memory.
MAX_FILE_BYTES = 16 * 1024 * 1024

_ORDER = "put the leaf first, then its issuer, and so on"
_CERTIFICATES, _TRUSTED = frozenset(("CERTIFICATE", "X509 CERTIFICATE")), "TRUSTED CERTIFICATE"
_MAX_TOLD = 5
_PARSE_REMEDY = "export it again as PEM, or have it issued anew"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """What one side of TLS shows: `chain[0]` is the leaf that `key` belongs to, the rest is sent after it in the file's order."""

    file: str
    chain: tuple[Certificate, ...]
    key: PKey = field(repr=False)

    @property
    def leaf(self) -> Certificate:
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
    groups: str = ""
    min_version: str = ""


@dataclass(frozen=True, slots=True)
class AuthorityUse:
    """One place of the configuration that names a CA file; `pool` is set for a backend_ca, empty for a client_ca."""

    where: str
    file: Path
    pool: str = ""
    names_sent: bool = False  # clients are told the names of these CAs


def pairs_of(config: Config) -> Iterator[PairUse]:
    """Every certificate with its key, in the configuration's order; a key that is not named is in the certificate's file."""
    for where, listener in zip(
        listener_paths([each.name for each in config.listener]), config.listener, strict=True
    ):
        for index, route in enumerate(listener.route):
            if route.certificate is not None:
                yield PairUse(
                    f"{where}.route[{index}].certificate",
                    route.certificate,
                    route.private_key or route.certificate,
                    sni=route.sni,
                    groups=route.groups,
                    min_version=route.min_version,
                )
    for name, pool in config.pool.items():
        if pool.machine_certificate is not None:
            yield PairUse(
                f"{pool_path(name)}.machine_certificate",
                pool.machine_certificate,
                pool.machine_key or pool.machine_certificate,
                pool=name,
                groups=pool.groups,
                min_version=pool.min_version,
            )


def authorities_of(config: Config) -> Iterator[AuthorityUse]:
    """Every CA file, in the configuration's order."""
    for where, listener in zip(
        listener_paths([each.name for each in config.listener]), config.listener, strict=True
    ):
        for index, route in enumerate(listener.route):
            if route.client_ca is not None:
                yield AuthorityUse(
                    f"{where}.route[{index}].client_ca",
                    route.client_ca,
                    names_sent=route.send_ca_names,
                )
    for name, pool in config.pool.items():
        if pool.backend_ca is not None:
            yield AuthorityUse(f"{pool_path(name)}.backend_ca", pool.backend_ca, pool=name)


def load_key_pair(
    where: str, certificate: Path, private_key: Path, files: Files | None = None
) -> KeyPair:
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


def load_authorities(where: str, file: Path, files: Files | None = None) -> tuple[Certificate, ...]:
    """Read a PEM bundle of CA certificates, at least one, in the file's order without duplicates. Raises ConfigError."""
    problems: list[Problem] = []
    chain = _read_chain(where, file, problems, files or Files())
    if problems:
        raise ConfigError(problems)
    return tuple(dict.fromkeys(chain))


def describe(certificate: Certificate, file: str) -> CertificateInfo:
    """The facts of one certificate that operators search for."""
    return CertificateInfo(
        file=file,
        subject=name_of(certificate.subject),
        issuer=name_of(certificate.issuer),
        serial_hex=certificate.serial_text,
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
    named = {use.certificate: use.where for use in pairs_of(config)} | {
        use.file: use.where for use in authorities_of(config)
    }
    for file, where in named.items():
        for certificate in _read_chain(where, file, problems, files):
            info = describe(certificate, str(file))
            known = found.get((info.file, info.subject))
            if known is None or info.not_after_at < known.not_after_at:
                found[info.file, info.subject] = info
    if problems:
        raise ConfigError(problems)
    return tuple(found.values())


def name_of(name: Name) -> str:
    """A subject or issuer as an RFC 4514 string."""
    return name.rfc4514_string()


def _read(where: str, file: Path, problems: list[Problem], files: Files) -> bytes | None:
    try:
        data, _ = files.read(file, MAX_FILE_BYTES)
    except IsADirectoryError:
        problems.append(Problem(where, f"{file} is a directory", "name the PEM file in it"))
    except FileNotFoundError:
        problems.append(
            Problem(
                where,
                f"{file} does not exist",
                "create it, or correct the path (relative paths start at the configuration file)",
            )
        )
    except PermissionError:
        problems.append(
            Problem(
                where,
                f"{file} may not be read by this user",
                "give the user that starts the relay read permission, or start it as root with relay.user set",
            )
        )
    except OSError as error:
        problems.append(
            Problem(where, f"{file} cannot be read: {error.strerror}", "name a PEM file")
        )
    else:
        if len(data) <= MAX_FILE_BYTES:
            return data
        problems.append(
            Problem(where, f"{file} is larger than {MAX_FILE_BYTES} bytes", "name a PEM file")
        )
    return None


def _read_chain(
    where: str, file: Path, problems: list[Problem], files: Files
) -> tuple[Certificate, ...]:
    return tuple(read_certificates(where, file, problems, files))


def read_certificates(
    where: str, file: Path, problems: list[Problem], files: Files
) -> Iterator[Certificate]:
    """The certificates of a PEM file, parsed one by one; what is wrong with the file is added to `problems`."""
    data = _read(where, file, problems, files)
    if data is None:
        return
    every = read_blocks(data)
    blocks = [block for block in every if block.label in _CERTIFICATES]
    broken = []
    for number, block in enumerate(blocks, 1):
        try:
            if block.fault:
                raise ValueError(block.fault)
            certificate = Certificate.from_der(block.data)
        except ValueError as error:
            broken.append((number, block, clip(str(error), 200)))
        else:
            yield certificate
    for number, block, words in broken[:_MAX_TOLD]:
        which = f"certificate {number} of {len(blocks)} in {file}{_subject_in(block.data)}"
        problems.append(Problem(where, f"{which} cannot be parsed: {words}", _PARSE_REMEDY))
    if len(broken) > _MAX_TOLD:
        what = f"{len(broken) - _MAX_TOLD} more certificates in {file} cannot be parsed"
        problems.append(Problem(where, what, _PARSE_REMEDY))
    if not blocks:
        remedy = remedy_for(data, "name the file that has the CERTIFICATE block")
        problems.append(Problem(where, f"{file} has no PEM certificate in it", remedy))
    elif any(block.label == _TRUSTED for block in every):
        # It says what the certificate may be trusted for, and we would pass over that.
        what = f"{file} has a TRUSTED CERTIFICATE in it, which is a format of OpenSSL's own"
        remedy = "convert it with: openssl x509 -in FILE -out NEW_FILE, for each of them"
        problems.append(Problem(where, what, remedy))


def _subject_in(der: bytes) -> str:
    """Whose certificate it is, where at least that can be read."""
    try:
        return f' ("{Name(read_certificate(der).subject).rfc4514_string()}")'
    except DerError:
        return ""


def _read_key(
    where: str, file: Path, certificate: Path, problems: list[Problem], files: Files
) -> PKey | None:
    # What is wrong with reading a file of both was said about the certificate.
    data = _read(where, file, [] if file == certificate else problems, files)
    if data is None:
        return None
    keys = [block for block in read_blocks(data) if block.label.endswith("PRIVATE KEY")]
    if not keys:
        remedy = (
            "set private_key (of a pool: machine_key), or append the key to the certificate file"
            if file == certificate
            else "name the file that has the PRIVATE KEY block"
        )
        problems.append(
            Problem(where, f"{file} has no private key in it", remedy_for(data, remedy))
        )
        return None
    if len(keys) > 1:
        problems.append(
            Problem(
                where,
                f"{file} has {len(keys)} private keys in it",
                "leave only the one that belongs to the certificate",
            )
        )
        return None
    [block] = keys
    if block.encrypted:
        problems.append(
            Problem(
                where,
                f"the private key in {file} is encrypted",
                f"decrypt it with: openssl pkey -in {file} -out NEW_FILE, and protect NEW_FILE with chmod 600",
            )
        )
        return None
    try:
        if block.fault:
            raise ValueError(block.fault)
        return parse_key(block.text)
    except ValueError as error:
        what = f"the private key in {file} cannot be parsed: {clip(str(error), 200)}"
        problems.append(Problem(where, what, remedy_for(data, "export it again with openssl pkey")))
        return None


def _mismatch(
    where: str, certificate: Path, private_key: Path, chain: tuple[Certificate, ...], key: PKey
) -> Iterator[Problem]:
    for position, candidate in enumerate(chain):
        if key_matches(candidate, key):
            if position:
                first = name_of(chain[0].subject)
                what = f'{certificate} does not start with its leaf: certificate 1 is "{first}", the key belongs to certificate {position + 1}, "{name_of(candidate.subject)}"'
                yield Problem(where, what, _ORDER)
            return
    if len(chain) > 1 and has_ca_flag(chain[0]) and not all(map(has_ca_flag, chain)):
        leaf = next(candidate for candidate in chain if not has_ca_flag(candidate))
        what = f'{certificate} does not start with its leaf: certificate 1 is the CA "{name_of(chain[0].subject)}", the leaf is "{name_of(leaf.subject)}"'
        yield Problem(where, what, _ORDER)
    what = f'the private key in {private_key} does not belong to the certificate "{name_of(chain[0].subject)}" in {certificate}'
    yield Problem(
        where, what, "name the key it was issued for, or issue a certificate for this key"
    )
