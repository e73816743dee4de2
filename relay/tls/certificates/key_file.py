"""Reads the private key of a certificate from its PEM file.

A key that a passphrase protects is decrypted here, once: the relay hands it on without
the protection, because a key derivation takes up to a second, and the passphrase stays
in this process.

Never: shows a byte of a key or of a passphrase.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple

from OpenSSL.crypto import PKey

from relay.config.key_path import private_key_path
from relay.core.untrusted import clip
from relay.credentials import shown
from relay.errors import Problem
from relay.files import Files
from relay.tls.certificates.keys import parse_key, plain_pem
from relay.tls.certificates.passphrase import READ_BYTES, passphrase_key, read_passphrase
from relay.tls.certificates.pem_blocks import Block, key_blocks, read_blocks, remedy_for
from relay.tls.certificates.pem_file import MAX_FILE_BYTES, read_pem_file
from relay.tls.certificates.provider_keys import REMEDY, ProviderKey, openssl_conf


class LoadedKey(NamedTuple):
    """A private key, None if a forked process will load it.

    `encrypted`: a passphrase protects its file. `provider`: what loads it, if a
    provider of OpenSSL does.
    """

    key: PKey | None
    encrypted: bool = False
    provider: ProviderKey | None = None


def read_key(
    where: str,
    file: Path,
    certificate: Path,
    passphrase_file: Path | None,
    problems: list[Problem],
    files: Files,
) -> LoadedKey | None:
    """The private key in a file, which may also have the certificate.

    `where` is the key path of the certificate. None if there is a problem; then
    `problems` says what is wrong.
    """
    if file != certificate:
        where = private_key_path(where)
    # One file for both: its read errors were already reported for the certificate.
    data = read_pem_file(where, file, [] if file == certificate else problems, files)
    if data is None:
        return None

    def problem(what: str, remedy: str) -> None:
        problems.append(Problem(where, what, remedy))

    blocks = read_blocks(data)
    keys = key_blocks(blocks)
    if not keys:
        remedy = (
            "set private_key (in a pool: machine_key), or append the key to the certificate file"
            if file == certificate
            else "give the path of the file that contains the PRIVATE KEY block"
        )
        problem(f"{shown(file)} has no private key in it", remedy_for(data, remedy))
        return None
    if len(keys) > 1:
        what = f"{shown(file)} has {len(keys)} private keys in it"
        problem(what, "keep only the key that belongs to the certificate")
        return None
    [block] = keys
    if block.for_provider and not block.fault:
        return _load_by_provider(where, file, block, passphrase_file, problems, files)
    if block.encrypted and not block.fault:
        key = _decrypt(where, file, block, passphrase_file, problems, files)
        if key is None:
            return None
        others = b"".join(each.text for each in blocks if each is not block)
        files.hand_on(file, MAX_FILE_BYTES, others + plain_pem(key))
        return LoadedKey(key, encrypted=True)
    if passphrase_file is not None:
        # It has no effect. The watcher compares it with what was read here.
        with contextlib.suppress(OSError):
            files.read(passphrase_file, READ_BYTES)
        files.leave_out(passphrase_file, READ_BYTES)
    try:
        if block.fault:
            raise ValueError(block.fault)
        return LoadedKey(parse_key(block.text))
    except ValueError as error:
        problem(
            f"the private key in {shown(file)} cannot be parsed: {clip(str(error), 200)}",
            remedy_for(data, "export it again with openssl pkey"),
        )
        return None


def _decrypt(
    where: str,
    file: Path,
    block: Block,
    passphrase_file: Path | None,
    problems: list[Problem],
    files: Files,
) -> PKey | None:
    if passphrase_file is None:
        what = f"the private key in {shown(file)} is encrypted"
        remedy = (
            "set key_passphrase_file to a file with its passphrase, or decrypt it with:"
            f" openssl pkey -in {file} -out NEW_FILE, and protect NEW_FILE with chmod 600"
        )
        problems.append(Problem(where, what, remedy))
        return None
    passphrase = read_passphrase(where, passphrase_file, problems, files)
    files.leave_out(passphrase_file, READ_BYTES)
    if passphrase is None:
        return None
    try:
        return parse_key(block.text, passphrase)
    except ValueError as error:
        lines = passphrase.count(b"\n") + 1
        what = (
            f"the passphrase in {shown(passphrase_file)} does not decrypt the private key in"
            f" {shown(file)}: {clip(str(error), 200)}"
        )
        remedy = f"compare with: openssl pkey -in {file} -passin file:{passphrase_file} -noout"
        if lines > 1:
            remedy += f"; the file has {lines} lines, and the relay takes them as one passphrase"
        problems.append(Problem(passphrase_key(where), what, remedy))
        return None


def _load_by_provider(
    where: str,
    file: Path,
    block: Block,
    passphrase_file: Path | None,
    problems: list[Problem],
    files: Files,
) -> LoadedKey | None:
    passphrase: bytes | None = b""
    if passphrase_file is not None:
        passphrase = read_passphrase(where, passphrase_file, problems, files)
        if passphrase is not None:
            # The relay's processes load the key again.
            files.hand_on(passphrase_file, READ_BYTES, files.read(passphrase_file, READ_BYTES)[0])
    if passphrase is None:
        return None
    provider = ProviderKey(block.text, passphrase)
    try:
        return LoadedKey(provider.load(), provider=provider)
    except ValueError as error:
        what = (
            f'the "{block.label}" in {shown(file)} is a key of an OpenSSL provider, and OpenSSL'
            f" cannot load it: {clip(str(error), 200)} (OPENSSL_CONF is {openssl_conf()})"
        )
        problems.append(Problem(where, what, REMEDY))
        return None
