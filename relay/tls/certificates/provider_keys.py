"""Private keys that an OpenSSL provider holds: in a TPM, a token, an HSM.

Their PEM has only a reference, or a key that the device has encrypted. OpenSSL finds
the provider by the PEM's label. The operator configures it with OPENSSL_CONF.

A fork copies a key in memory, but not one in a device: a PKCS#11 module must be opened
again in every process, and forgets that it was given its PIN. Loading may also be slow.
So the supervisor never loads such a key; its children do, each for itself.

Never: shows a byte of a reference or of a passphrase.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from OpenSSL.crypto import PKey

from relay.tls.certificates.keys import parse_key

REMEDY = (
    "set OPENSSL_CONF to a configuration of OpenSSL that activates the provider, and see"
    ' "A key in a TPM or an HSM" in docs/operation.md'
)

# A device has room for few keys, so each key is loaded once, as long as it is used.
_loaded: WeakValueDictionary[bytes, PKey] = WeakValueDictionary()
_left_to_children = False
_lock_fd = -1


@dataclass(frozen=True, slots=True)
class ProviderKey:
    """What loads a key: its PEM block, and the passphrase or PIN, "" for none."""

    text: bytes = field(repr=False)
    passphrase: bytes = field(repr=False)

    def load(self) -> PKey | None:
        """The key; None in the supervisor. Raises ValueError with OpenSSL's text."""
        if _left_to_children:
            return None
        digest = hashlib.sha256(self.text + b"\0" + self.passphrase).digest()
        key = _loaded.get(digest)
        if key is None:
            with _one_at_a_time():
                key = _loaded[digest] = parse_key(self.text, self.passphrase)
        return key


def leave_to_children() -> None:
    """In the supervisor: load no key of a provider from now on."""
    global _left_to_children, _lock_fd
    _left_to_children = True
    if _lock_fd < 0:
        _lock_fd = os.memfd_create("provider-keys", os.MFD_CLOEXEC)


def load_from_now_on() -> None:
    """In a forked process: load keys when they are used."""
    global _left_to_children
    _left_to_children = False


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let one child of the supervisor after another open the device.

    SoftHSM 2.6 does not see its token while another process opens it.
    """
    if _lock_fd < 0:
        yield
        return
    fcntl.lockf(_lock_fd, fcntl.LOCK_EX)  # belongs to the process, so it ends with it
    try:
        yield
    finally:
        fcntl.lockf(_lock_fd, fcntl.LOCK_UN)


def openssl_conf() -> str:
    """The value of OPENSSL_CONF, for messages."""
    return os.environ.get("OPENSSL_CONF") or "not set"
