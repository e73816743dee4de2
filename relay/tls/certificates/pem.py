"""Reads certificate, key and CA files, and reports every problem of a file at once.

Never: checks whether a certificate suits its use (that is `tls.certificates.lint`),
or builds a TLS context.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from OpenSSL.crypto import PKey

from relay.core.untrusted import clip
from relay.errors import ConfigError, Problem
from relay.files import Files
from relay.tls.certificates.certificate import Certificate, Name
from relay.tls.certificates.der import DerError, read_certificate
from relay.tls.certificates.extensions import has_ca_flag
from relay.tls.certificates.keys import key_matches, parse_key
from relay.tls.certificates.pem_blocks import Block, read_blocks, remedy_for

# Debian's whole CA bundle is 220 kB. A far larger file is a mistake and would cost
# memory.
MAX_FILE_BYTES = 16 * 1024 * 1024

_ORDER = "put the leaf first, then its issuer, and so on"
_CERTIFICATES, _TRUSTED = frozenset(("CERTIFICATE", "X509 CERTIFICATE")), "TRUSTED CERTIFICATE"
_MAX_REPORTED = 5
_PARSE_REMEDY = "export it again as PEM, or reissue it"
_PATH_REMEDY = "give the path of a PEM file"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate that the relay presents, with its chain and its key.

    `chain[0]` is the leaf that `key` belongs to. The rest is sent after it, in the
    file's order.
    """

    file: str
    chain: tuple[Certificate, ...]
    key: PKey = field(repr=False)

    @property
    def leaf(self) -> Certificate:
        """The certificate that the key belongs to."""
        return self.chain[0]


def load_key_pair(
    where: str, certificate: Path, private_key: Path, files: Files | None = None
) -> KeyPair:
    """Read a certificate file (leaf first, then its chain) and the leaf's key.

    Both may be in one file. Raises ConfigError with every problem found in the two
    files.
    """
    problems: list[Problem] = []
    files = files or Files()
    chain = tuple(read_certificates(where, certificate, problems, files))
    key = _read_key(where, private_key, certificate, problems, files)
    if chain and key is not None:
        problems += _mismatch(where, certificate, private_key, chain, key)
    if problems or key is None:
        raise ConfigError(problems)
    return KeyPair(str(certificate), chain, key)


def load_authorities(where: str, file: Path, files: Files | None = None) -> tuple[Certificate, ...]:
    """Read a PEM bundle of CA certificates, in the file's order without duplicates.

    Raises ConfigError with every problem of the file, or if it has no certificate.
    """
    problems: list[Problem] = []
    chain = tuple(read_certificates(where, file, problems, files or Files()))
    if problems:
        raise ConfigError(problems)
    return tuple(dict.fromkeys(chain))


def read_certificates(
    where: str, file: Path, problems: list[Problem], files: Files
) -> Iterator[Certificate]:
    """The certificates of a PEM file, parsed one by one.

    Adds to `problems` what is wrong.
    """
    data = _read(where, file, problems, files)
    if data is None:
        return
    every = read_blocks(data)
    blocks = [block for block in every if block.label in _CERTIFICATES]
    unparsed: list[tuple[int, Block, str]] = []
    for number, block in enumerate(blocks, 1):
        try:
            if block.fault:
                raise ValueError(block.fault)
            certificate = Certificate.from_der(block.data)
        except ValueError as error:
            unparsed.append((number, block, clip(str(error), 200)))
        else:
            yield certificate
    for number, block, why in unparsed[:_MAX_REPORTED]:
        which = f"certificate {number} of {len(blocks)} in {file}{_subject_in(block.data)}"
        problems.append(Problem(where, f"{which} cannot be parsed: {why}", _PARSE_REMEDY))
    if len(unparsed) > _MAX_REPORTED:
        what = f"{len(unparsed) - _MAX_REPORTED} more certificates in {file} cannot be parsed"
        problems.append(Problem(where, what, _PARSE_REMEDY))
    if not blocks:
        remedy = remedy_for(data, "give the path of the file that contains a CERTIFICATE block")
        problems.append(Problem(where, f"{file} has no PEM certificate in it", remedy))
    elif any(block.label == _TRUSTED for block in every):
        # Its trust settings would be lost, so it must not be skipped silently.
        what = f"{file} contains a TRUSTED CERTIFICATE, a format that only OpenSSL reads"
        remedy = "convert each of them with: openssl x509 -in FILE -out NEW_FILE"
        problems.append(Problem(where, what, remedy))


def _read(where: str, file: Path, problems: list[Problem], files: Files) -> bytes | None:
    try:
        data, _ = files.read(file, MAX_FILE_BYTES)
    except IsADirectoryError:
        remedy = "give the path of the PEM file in it"
        problems.append(Problem(where, f"{file} is a directory", remedy))
    except FileNotFoundError:
        remedy = "create it, or correct the path (relative paths start at the configuration file)"
        problems.append(Problem(where, f"{file} does not exist", remedy))
    except PermissionError:
        remedy = (
            "give the user that starts the relay read permission,"
            " or start the relay as root with relay.user set"
        )
        problems.append(Problem(where, f"no permission to read {file}", remedy))
    except OSError as error:
        what = f"{file} cannot be read: {error.strerror}"
        problems.append(Problem(where, what, _PATH_REMEDY))
    else:
        if len(data) <= MAX_FILE_BYTES:
            return data
        what = f"{file} is larger than {MAX_FILE_BYTES} bytes"
        problems.append(Problem(where, what, _PATH_REMEDY))
    return None


def _subject_in(der: bytes) -> str:
    """The subject in parentheses; "" if it cannot be read."""
    try:
        return f' ("{Name(read_certificate(der).subject).rfc4514_string()}")'
    except DerError:
        return ""


def _read_key(
    where: str, file: Path, certificate: Path, problems: list[Problem], files: Files
) -> PKey | None:
    # One file for both: its read errors were already reported for the certificate.
    data = _read(where, file, [] if file == certificate else problems, files)
    if data is None:
        return None

    def problem(what: str, remedy: str) -> None:
        problems.append(Problem(where, what, remedy))

    keys = [block for block in read_blocks(data) if block.label.endswith("PRIVATE KEY")]
    if not keys:
        remedy = (
            "set private_key (in a pool: machine_key), or append the key to the certificate file"
            if file == certificate
            else "give the path of the file that contains the PRIVATE KEY block"
        )
        problem(f"{file} has no private key in it", remedy_for(data, remedy))
        return None
    if len(keys) > 1:
        what = f"{file} has {len(keys)} private keys in it"
        problem(what, "keep only the key that belongs to the certificate")
        return None
    [block] = keys
    if block.encrypted:
        problem(
            f"the private key in {file} is encrypted",
            f"decrypt it with: openssl pkey -in {file} -out NEW_FILE,"
            " and protect NEW_FILE with chmod 600",
        )
        return None
    try:
        if block.fault:
            raise ValueError(block.fault)
        return parse_key(block.text)
    except ValueError as error:
        problem(
            f"the private key in {file} cannot be parsed: {clip(str(error), 200)}",
            remedy_for(data, "export it again with openssl pkey"),
        )
        return None


def _mismatch(
    where: str, certificate: Path, private_key: Path, chain: tuple[Certificate, ...], key: PKey
) -> Iterator[Problem]:
    first = chain[0].subject.rfc4514_string()
    not_leaf = f"{certificate} does not start with its leaf: certificate 1 is"
    for position, candidate in enumerate(chain):
        if key_matches(candidate, key):
            if position:
                what = (
                    f'{not_leaf} "{first}", the key belongs to certificate {position + 1},'
                    f' "{candidate.subject.rfc4514_string()}"'
                )
                yield Problem(where, what, _ORDER)
            return
    if len(chain) > 1 and has_ca_flag(chain[0]) and not all(map(has_ca_flag, chain)):
        leaf = next(candidate for candidate in chain if not has_ca_flag(candidate))
        what = f'{not_leaf} the CA "{first}", the leaf is "{leaf.subject.rfc4514_string()}"'
        yield Problem(where, what, _ORDER)
    what = (
        f"the private key in {private_key} does not belong to the certificate"
        f' "{first}" in {certificate}'
    )
    remedy = (
        "give the path of the key that the certificate was issued for,"
        " or issue a certificate for this key"
    )
    yield Problem(where, what, remedy)
