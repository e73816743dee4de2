import signal
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.backend import TlsBackend
from tests.support.pki import make_pki
from tests.support.scoreboard import close_scoreboards

# A shell that starts the suite in the background has it ignore SIGINT, and so would every
# program that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def pki(tmp_path_factory):
    """The certificate matrix, made once per run."""
    return make_pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(autouse=True)
def scoreboards():
    """The descriptors of a test's scoreboards go with the test."""
    yield
    close_scoreboards()


@pytest.fixture
def short_path():
    """An empty directory with a path short enough for unix sockets (107 bytes), which tmp_path may not have."""
    with tempfile.TemporaryDirectory(prefix="rl-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@pytest.fixture
def stack():
    """What a test opened, closed in reverse order."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def make_backend(pki):
    """Mutual-TLS backends that are closed after the test: `make_backend(serve, alpn=…)`."""
    made = []

    def make(*arguments, files=None, client_ca=None, **keywords):
        shown = files or pki.backend
        backend = TlsBackend(
            shown.certificate, shown.key, client_ca or pki.ca, *arguments, **keywords
        )
        made.append(backend)
        return backend

    yield make
    for backend in made:
        backend.close()
