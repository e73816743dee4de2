from collections.abc import Callable
from dataclasses import replace

import pytest

from relay.worker import inbound
from tests.support.backend import TlsBackend, echo
from tests.support.clock import Clock
from tests.support.peer import Door, Peer, dial
from tests.support.records import RecordWriter
from tests.support.streams import stream_always
from tests.support.worker import RunningWorker, client_context, pool_toml, route_toml


@pytest.fixture
def clock(monkeypatch):
    """The wall clock by which workers judge a client's certificate."""
    made = Clock()
    monkeypatch.setattr(inbound, "time", made)
    return made


@pytest.fixture(params=["ordinary", "streaming"])
def streams(request, monkeypatch):
    """Whether every byte goes through `streaming.stream`."""
    if request.param == "streaming":
        stream_always(monkeypatch)
    return request.param == "streaming"


@pytest.fixture
def writer(pki, tmp_path, stack):
    """Connect a client that writes records by hand."""

    def connect(relay):
        made = RecordWriter(relay.port, client_context(pki, pki.client), tmp_path / "keys")
        stack.callback(made.sock.close)
        return made

    return connect


@pytest.fixture
def start(tmp_path, pki, stack) -> Callable[..., RunningWorker]:
    """A worker with the listener "https", a route and the pool "main" (b1, b2, …)."""

    def start(
        addresses,
        *,
        top="",
        listener="",
        sni="[]",
        route="",
        pool="",
        client_ca=None,
        backend_ca=None,
        gateway=None,
        files_limit=0,
        files_spare=0,
        memory_spare=0,
        worker=None,
    ):
        head = f'[[listener]]\nname = "https"\nlisten = ["127.0.0.1:0"]\n{listener}'
        routes = route_toml(
            replace(pki, ca=client_ca or pki.ca, gateway=gateway or pki.gateway),
            sni=sni,
            extra=route,
        )
        pools = pool_toml(replace(pki, ca=backend_ca or pki.ca), addresses, extra=pool)
        toml = f"{top}\n{head}\n{routes}\n{pools}"
        running = RunningWorker(
            tmp_path,
            toml,
            files_limit=files_limit,
            files_spare=files_spare,
            memory_spare=memory_spare,
            beside=worker,
        )
        stack.callback(running.close)
        return running

    return start


@pytest.fixture
def door(pki, stack) -> Callable[..., Door]:
    """Open a backend that the test accepts from by hand."""

    def open_door(files=None, **settings):
        made = Door(pki, files, **settings)
        stack.callback(made.close)
        return made

    return open_door


@pytest.fixture
def backend(pki, stack) -> Callable[..., TlsBackend]:
    """Start a backend that serves by itself."""

    def start_backend(serve=echo, files=None, client_ca=None, **settings):
        chosen = files or pki.backend
        made = TlsBackend(chosen.certificate, chosen.key, client_ca or pki.ca, serve, **settings)
        stack.callback(made.close)
        return made

    return start_backend


@pytest.fixture
def call(pki, stack) -> Callable[..., Peer]:
    """Connect a client with the good certificate."""
    context = client_context(pki, pki.client)

    def call(relay, name="app.example.com", context=context, session=None):
        peer = dial(relay.port, context, name, session)
        stack.callback(peer.sock.close)
        return peer

    return call


@pytest.fixture
def pair(call):
    """A client and the backend's end of the session that the relay made for it."""

    def pair(relay, door, **how):
        return call(relay, **how), door.accept()

    return pair
