import fcntl
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

from tests.support.backend import TlsBackend
from tests.support.pki import make_pki
from tests.support.scoreboard import close_scoreboards

# A shell that starts the suite in the background makes it ignore SIGINT. The programs
# that the tests start and interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Some machines forbid bytecode files. Compiling then takes 40 % of the CPU time of each
# start of relay (0.55 s instead of 0.35 s, Python 3.11).
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Held open for the whole run: a lock that all processes of `pytest -n` share.
TURNSTILE = os.open(__file__, os.O_RDONLY)
# Most tests in BUSY need a CPU, and most tests in WAITING wait.
BUSY, WAITING = ("supervisor", "e2e"), ("worker",)
# Slow tests start first, so that `pytest -n` does not wait for one of them at the end.
SLOW_FIRST = (*BUSY, *WAITING, "admin", "bench", "checker")
# One process runs all tests of each of these: they share a browser, a database or a
# relay.
TOGETHER = (
    "tests/admin/test_access.py",
    "tests/admin/test_balancer_manager.py",
    "tests/admin/test_balancer_page.py",
    "tests/e2e/test_bad_input.py",
    "tests/e2e/test_foreign_clients.py",
    "tests/e2e/test_machines.py",
    "tests/e2e/test_routing.py",
    "tests/packaging/test_deb.py",
    "tests/packaging/test_distributions.py",
    "tests/supervisor/test_apply.py",
    "tests/supervisor/test_control.py",
    "tests/supervisor/test_taken_over.py",
    "tests/worker/test_postgres.py",
)


def unit_of(nodeid):
    """The test, or the file whose tests one process runs."""
    file = nodeid.partition("::")[0]
    return file if file in TOGETHER else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give each process of `pytest -n` its next test when it has few left.

    By itself, xdist gives the first process the first 480 tests. These are the slowest,
    and the suite would wait for that process at the end.
    """
    from xdist.scheduler import LoadScopeScheduling

    class OneByOne(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return unit_of(nodeid)

    return OneByOne(config, log) if config.getoption("dist") == "load" else None


def pytest_collection_modifyitems(items):
    """Order the tests: slow directories, other directories, tests marked `serial`.

    Tests of BUSY and WAITING are mixed evenly, so that some wait while others compute.
    """

    @cache
    def directory_of(path):
        return path.relative_to(Path(__file__).parent).parts[0]

    def place(item):
        directory = directory_of(item.path)
        return SLOW_FIRST.index(directory) if directory in SLOW_FIRST else len(SLOW_FIRST)

    items.sort(key=place)
    turns = {}  # the place of a unit in its own list, from 0 to 1
    for directories in (BUSY, WAITING):
        units = [unit_of(item.nodeid) for item in items if directory_of(item.path) in directories]
        for number, unit in enumerate(units):
            turns.setdefault(unit, number / len(units))

    def order(item):
        return item.get_closest_marker("serial") is not None, turns.get(unit_of(item.nodeid), 1)

    items.sort(key=order)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """Run a test marked `serial` while no other test runs.

    This wraps pytest-timeout's hook, so that waiting for the lock is not counted.
    """
    serial = item.get_closest_marker("serial") is not None
    fcntl.flock(TURNSTILE, fcntl.LOCK_EX if serial else fcntl.LOCK_SH)
    try:
        return (yield)
    finally:
        fcntl.flock(TURNSTILE, fcntl.LOCK_UN)


@pytest.fixture(scope="session")
def pki(tmp_path_factory):
    """The certificate matrix, made once per process."""
    return make_pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(autouse=True)
def scoreboards():
    """Close the scoreboards of a test after it."""
    yield
    close_scoreboards()


@pytest.fixture
def short_path():
    """An empty directory whose path fits into a unix socket's address (107 bytes)."""
    with tempfile.TemporaryDirectory(prefix="rl-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@pytest.fixture
def stack():
    """An exit stack, closed after the test."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def make_backend(pki):
    """`make_backend(serve, alpn=…)`: a mutual-TLS backend, closed after the test."""
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
