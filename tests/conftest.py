import tempfile
from pathlib import Path

import pytest

from tests.support.pki import make_pki


@pytest.fixture(scope="session")
def pki(tmp_path_factory):
    """The certificate matrix, made once per run."""
    return make_pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def short_path():
    """An empty directory with a path short enough for unix sockets (107 bytes), which tmp_path may not have."""
    with tempfile.TemporaryDirectory(prefix="rl-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)
