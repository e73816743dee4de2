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
from relay.credentials import shown
from relay.errors import ConfigError, Problem
from relay.files import Files
from relay.tls.certificates.certificate import Certificate, Name
from relay.tls.certificates.der import DerError, read_certificate
from relay.tls.certificates.extensions import has_ca_flag
from relay.tls.certificates.key_file import read_key
from relay.tls.certificates.keys import key_matches
from relay.tls.certificates.pem_blocks import Block, read_blocks, remedy_for
from relay.tls.certificates.pem_file import read_pem_file
from relay.tls.certificates.provider_keys import ProviderKey

_ORDER = "put the leaf first, then its issuer, and so on"
_CERTIFICATES, _TRUSTED = frozenset(("CERTIFICATE", "X509 CERTIFICATE")), "TRUSTED CERTIFICATE"
_MAX_REPORTED = 5
_PARSE_REMEDY = "export it again as PEM, or reissue it"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate that the relay presents, with its chain and its key.

    `file` is the certificate's, as messages name it. `chain[0]` is the leaf that `key`
    belongs to. The rest is sent after it, in the file's order. `encrypted`: a
    passphrase protects the key's file. `provider`: what loads the key, if a provider of
    OpenSSL does; then `key` is None in the supervisor.
    """

    file: str
    chain: tuple[Certificate, ...]
    key: PKey | None = field(repr=False)
    encrypted: bool = False
    provider: ProviderKey | None = None

    @property
    def leaf(self) -> Certificate:
        """The certificate that the key belongs to."""
        return self.chain[0]


def load_key_pair(
    where: str,
    certificate: Path,
    private_key: Path,
    files: Files | None = None,
    passphrase_file: Path | None = None,
) -> KeyPair:
    """Read a certificate file (leaf first, then its chain) and the leaf's key.

    Both may be in one file. Raises ConfigError with every problem found in the files.
    """
    problems: list[Problem] = []
    files = files or Files()
    chain = tuple(read_certificates(where, certificate, problems, files))
    loaded = read_key(where, private_key, certificate, passphrase_file, problems, files)
    if chain and loaded is not None and loaded.key is not None:
        mismatch = _mismatch(where, certificate, private_key, chain, loaded.key)
        problems += map(_of_device, mismatch) if loaded.provider else mismatch
    if problems or loaded is None:
        raise ConfigError(problems)
    return KeyPair(shown(certificate), chain, *loaded)


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
    data = read_pem_file(where, file, problems, files)
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
        which = f"certificate {number} of {len(blocks)} in {shown(file)}{_subject_in(block.data)}"
        problems.append(Problem(where, f"{which} cannot be parsed: {why}", _PARSE_REMEDY))
    if len(unparsed) > _MAX_REPORTED:
        what = (
            f"{len(unparsed) - _MAX_REPORTED} more certificates in {shown(file)} cannot be parsed"
        )
        problems.append(Problem(where, what, _PARSE_REMEDY))
    if not blocks:
        remedy = remedy_for(data, "give the path of the file that contains a CERTIFICATE block")
        problems.append(Problem(where, f"{shown(file)} has no PEM certificate in it", remedy))
    elif any(block.label == _TRUSTED for block in every):
        # Its trust settings would be lost, so it must not be skipped silently.
        what = f"{shown(file)} contains a TRUSTED CERTIFICATE, a format that only OpenSSL reads"
        remedy = "convert each of them with: openssl x509 -in FILE -out NEW_FILE"
        problems.append(Problem(where, what, remedy))


def _subject_in(der: bytes) -> str:
    """The subject in parentheses; "" if it cannot be read."""
    try:
        return f' ("{Name(read_certificate(der).subject).rfc4514_string()}")'
    except DerError:
        return ""


def _of_device(mismatch: Problem) -> Problem:
    remedy = (
        f"{mismatch.remedy}; the device must also show the key's public half: in a PKCS#11 token,"
        " give both the same id"
    )
    return Problem(mismatch.where, mismatch.what, remedy)


def _mismatch(
    where: str, certificate: Path, private_key: Path, chain: tuple[Certificate, ...], key: PKey
) -> Iterator[Problem]:
    first = chain[0].subject.rfc4514_string()
    not_leaf = f"{shown(certificate)} does not start with its leaf: certificate 1 is"
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
        f"the private key in {shown(private_key)} does not belong to the certificate"
        f' "{first}" in {shown(certificate)}'
    )
    remedy = (
        "give the path of the key that the certificate was issued for,"
        " or issue a certificate for this key"
    )
    yield Problem(where, what, remedy)
