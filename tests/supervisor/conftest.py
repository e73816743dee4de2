import socket

import pytest

from relay.demo.ca import LeafSpec
from tests.support.backend import TlsBackend
from tests.support.client import PATIENCE_S, context_of, echoes
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


@pytest.fixture
def bob(pki):
    """A context of another client."""
    return context_of(pki, pki.write(pki.authority.issue(LeafSpec("bob", purposes=("client",)))))


@pytest.fixture
def dial(stack):
    """Open a session that stays open until the test ends."""

    def dial(gateway, context):
        sock = socket.create_connection(("127.0.0.1", gateway.port()), PATIENCE_S)
        stack.callback(sock.close)
        client = context.wrap_socket(sock, server_hostname="app.example.com")
        stack.callback(client.close)
        assert echoes(client)
        return client

    return dial
