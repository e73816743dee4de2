"""relay and httpd with mod_proxy_balancer send each cookie to the same backend."""

import pytest

from tests.support.client import context_of
from tests.support.httpd import Httpd, httpd_program
from tests.support.peer import dial
from tests.support.tables import listener_table, pool_table, route_table
from tests.support.web import Site, request, response

pytestmark = pytest.mark.skipif(
    httpd_program() is None, reason="httpd with mod_proxy_balancer is not installed"
)

# Each cookie names an existing backend. For other cookies httpd takes turns and relay
# hashes. relay also accepts two forms that httpd does not: the name in the URL in any
# case (Tomcat writes it in lower case), and a value with several dots.
REQUESTS = [
    {"cookie": "JSESSIONID=abc.w1"},
    {"cookie": "JSESSIONID=abc.w2"},
    {"cookie": "JSESSIONID=abc.w3"},
    {"cookie": "JSESSIONID=.w3"},
    {"cookie": "a=1; JSESSIONID=abc.w2; b=2"},
    {"cookie": "a=1;JSESSIONID=abc.w3;b=2"},
    {"cookie": "XJSESSIONID=abc.w1; JSESSIONID=abc.w2"},
    {"cookie": "JSESSIONID=abc.w2", "field": "cOOkie"},
    {"target": "/app/page;JSESSIONID=abc.w3"},
    {"target": "/app/page;JSESSIONID=abc.w2?x=1"},
    {"target": "/app?JSESSIONID=abc.w1"},
    {"target": "/app;JSESSIONID=abc.w1", "cookie": "JSESSIONID=abc.w2"},
]


@pytest.fixture
def both(pki, make_backend, start, short_path):
    """Ports of httpd and of the relay, in front of the same three backends."""
    backends = [make_backend(Site(name)) for name in ("w1", "w2", "w3")]
    gateway = start(
        listener_table(route_table(pki))
        + pool_table(pki, [each.address for each in backends], sticky="cookie")
    )
    with Httpd(short_path, pki, [each.port for each in backends]) as httpd:
        yield {"httpd": httpd.port, "relay": gateway.port()}


def test_the_same_requests_go_to_the_same_backends(pki, both):
    context = context_of(pki)

    def visit(port, how):
        client = dial(port, context)
        client.send(request(**how))
        name = response(client)[1].decode()
        client.sock.close()
        return name

    # Twice: a backend chosen in turn would differ the second time.
    chosen = {
        who: [[visit(port, how) for how in REQUESTS] for _ in range(2)]
        for who, port in both.items()
    }
    assert chosen["relay"] == chosen["httpd"]
    assert chosen["relay"][0] == chosen["relay"][1]
    assert set(chosen["relay"][0]) == {"w1", "w2", "w3"}
