"""systemd credentials: the file `credential:NAME` of this service.

systemd decrypts and copies the files of LoadCredential= and LoadCredentialEncrypted=
into a directory that only this service can read, and names it in
$CREDENTIALS_DIRECTORY.

Never: opens a file.
"""

from __future__ import annotations

import os
from pathlib import Path

DIRECTORY = "CREDENTIALS_DIRECTORY"


def directory_of_credentials() -> Path | None:
    """The directory that systemd made for this process; None without one."""
    directory = Path(os.environ.get(DIRECTORY) or ".")
    return directory if directory.is_absolute() else None


def is_credential(file: Path) -> bool:
    """Whether a file lies in the directory of this service's credentials."""
    return file.parent == directory_of_credentials()


def shown(file: Path) -> str:
    """A file's name in messages: `credential:NAME (path)` if it is a credential."""
    return f"credential:{file.name} ({file})" if is_credential(file) else str(file)


def file_remedy(file: Path, remedy: str) -> str:
    """What to do about a file: another remedy if it is a credential.

    Its directory is read-only, so nothing can be created or changed there.
    """
    if not is_credential(file):
        return remedy
    return f"correct the line LoadCredential={file.name}:FILE of the systemd unit, and restart it"
