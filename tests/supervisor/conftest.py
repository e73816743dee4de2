import pytest

from tests.support.backend import TlsBackend
from tests.support.configs import write_body
from tests.support.gateway import Gateway


@pytest.fixture(scope="session")
def echo(pki):
    """A backend that sends back what it gets."""
    backend = TlsBackend(pki.backend.certificate, pki.backend.key, pki.ca)
    yield backend
    backend.close()


@pytest.fixture(scope="session")
def body(pki, echo):
    """Listeners and pools of most tests: one listener on a free port, one backend."""
    return write_body(pki, echo)


@pytest.fixture
def relay(body):
    """`relay(body, relay={"workers": 1})`: a relay that is stopped after the test.

    It is started, unless `start=False`.
    """
    made = []

    def make(text=None, *, start=True, **more):
        gateway = Gateway(body if text is None else text, **more)
        made.append(gateway)
        return gateway.start() if start else gateway

    yield make
    for gateway in made:
        gateway.close()
