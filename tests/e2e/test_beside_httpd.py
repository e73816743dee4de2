"""relay and httpd with mod_proxy_balancer choose the same backend for each request."""

from typing import Any, NamedTuple

import pytest

from tests.support.client import context_of
from tests.support.httpd import Httpd, httpd_program
from tests.support.peer import dial
from tests.support.tables import listener_table, pool_table, route_table
from tests.support.web import Site, request, response

pytestmark = pytest.mark.skipif(
    httpd_program() is None, reason="httpd with mod_proxy_balancer is not installed"
)


class Set(NamedTuple):
    """One way to be sticky: for httpd, for relay, the backends' routes, and requests.

    Each request names a backend as httpd reads it. For other requests httpd takes
    turns; relay reads more of them, and hashes.
    """

    httpd: str
    relay: dict[str, Any]
    routes: tuple[str, ...]
    requests: list[dict[str, str]]


BY_DOT = Set(
    "stickysession=JSESSIONID",
    {},
    ("w1", "w2", "a.w1", "node.dc-1.w3"),
    [
        {"cookie": "JSESSIONID=abc.w1"},
        {"cookie": "JSESSIONID=abc.w2"},
        {"cookie": "JSESSIONID=abc.a.w1"},
        {"cookie": "JSESSIONID=a.w1"},
        {"cookie": "JSESSIONID=x.node.dc-1.w3"},
        {"cookie": "JSESSIONID=.w2"},
        {"cookie": "a=1; JSESSIONID=abc.w2; b=2"},
        {"cookie": "a=1;JSESSIONID=abc.a.w1;b=2"},
        {"cookie": "XJSESSIONID=abc.w1; JSESSIONID=abc.w2"},
        {"cookie": "JSESSIONIDX=abc.w1; JSESSIONID=abc.w2"},
        {"cookie": "jsessionid=abc.w1; JSESSIONID=abc.w2"},
        {"cookie": "a=JSESSIONID=abc.w1; JSESSIONID=abc.w2"},
        {"cookie": "JSESSIONID=abc.w2", "field": "cOOkie"},
        {"cookie": "JSESSIONID=abc.w2; JSESSIONID=abc.w1"},
        {"cookie": "JSESSIONID=abc.w2, JSESSIONID=abc.w1"},
        {"cookie": "JSESSIONID; JSESSIONID=abc.w2"},
        {"cookie": "JSESSIONID = abc.w2"},
        {"cookie": "JSESSIONID= abc.w2"},
        {"cookie": "JSESSIONID =abc.w2"},
        {"cookie": "JSESSIONID=a=b.w2"},
        {"cookie": "JSESSIONID=a/b+c==.w2"},
        {"cookie": "a=b,JSESSIONID=abc.w2"},
        {"cookie": "a JSESSIONID=abc.w2"},
        {"cookie": "a=b JSESSIONID=abc.w2"},
        {"cookie": "a=1\r\nCookie: JSESSIONID=abc.w2"},
        {"cookie": "JSESSIONID=abc.w1\r\nCookie: JSESSIONID=abc.w2"},
        {"target": "/app/page;JSESSIONID=abc.a.w1"},
        {"target": "/app/page;JSESSIONID=abc.w2?x=1"},
        {"target": "/app/page;JSESSIONID=ab/c.w2"},
        {"target": "/app/page;%4aSESSIONID=abc.w2"},
        {"target": "/app/page;JSESSIONID=abc%2Ew2"},
        {"target": "/app?JSESSIONID=abc.w1"},
        {"target": "/app?x=1&JSESSIONID=abc.w2&y=2"},
        {"target": "/app?JSESSIONID=ab/c.w2"},
        {"target": "/app?JSESSIONID&JSESSIONID=abc.w2"},
        {"target": "/app?r=/other;JSESSIONID=abc.w2"},
        {"target": "/app?r=http://b/?JSESSIONID=abc.w2&JSESSIONID=abc.w1"},
        {"target": "/app?XJSESSIONID=abc.w2&JSESSIONID=abc.w1"},
        {"target": "/appJSESSIONID=abc.w2"},
        {"target": "/app;jsessionid=abc.w1?JSESSIONID=abc.w2"},
        {"target": "/app;JSESSIONID=abc.w1?JSESSIONID=abc.w2"},
        {"target": "/app;JSESSIONID=abc.w1", "cookie": "JSESSIONID=abc.w2"},
        {"target": "/app;JSESSIONID=", "cookie": "JSESSIONID=abc.w2"},
        {"target": "/app?JSESSIONID=", "cookie": "JSESSIONID=abc.w2"},
    ],
)
BY_COLON = Set(
    "stickysession=JSESSIONID stickysessionsep=:",
    {"cookie_separator": ":"},
    ("w1", "app.w2", "a:w3"),
    [
        {"cookie": "JSESSIONID=abc:w1"},
        {"cookie": "JSESSIONID=abc.def:app.w2"},
        {"cookie": "JSESSIONID=abc:a:w3"},
        {"cookie": "JSESSIONID=:w1"},
        {"target": "/app;JSESSIONID=abc:w1"},
        {"target": "/app;JSESSIONID=abc%3Aapp.w2"},
        {"target": "/app?JSESSIONID=abc:a:w3"},
    ],
)
BY_MARK = Set(
    "stickysession=JSESSIONID|jsessionid stickysessionsep=! scolonpathdelim=On",
    {"cookie_separator": "!", "cookie_in_url": "jsessionid"},
    ("w1", "w2"),
    [
        {"cookie": "JSESSIONID=abc!w1"},
        {"cookie": "JSESSIONID=a.b!w2"},
        {"target": "/app;jsessionid=abc!w2"},
        {"target": "/app;jsessionid=abc!w2;v=1"},
        {"target": "/app;v=1;jsessionid=abc!w2?x=1"},
        {"target": "/app?jsessionid=abc!w2;v=1"},
        {"target": "/app;jsessionid=abc!w2?JSESSIONID=abc!w1"},
        {"target": "/app;jsessionid=abc!w2", "cookie": "JSESSIONID=abc!w1"},
    ],
)
WHOLE = Set(
    "stickysession=SRV|srv stickysessionsep=Off",
    {"cookie": "SRV", "cookie_separator": "", "cookie_in_url": "srv"},
    ("w1", "w2", "node.dc-1.w3"),
    [
        {"cookie": "SRV=w1"},
        {"cookie": "a=1; SRV=w2"},
        {"cookie": "SRV=node.dc-1.w3"},
        {"cookie": "srv=w1; SRV=w2"},
        {"target": "/app?srv=w2"},
        {"target": "/app?x=1&srv=node.dc-1.w3&y=2"},
        {"target": "/app;srv=w2"},
        {"target": "/app?srv=w2", "cookie": "SRV=w1"},
    ],
)
SETS = {
    "after a dot": BY_DOT,
    "after a colon": BY_COLON,
    "two names": BY_MARK,
    "the whole value": WHOLE,
}


def visit(port, context, how):
    client = dial(port, context)
    client.send(request(**how))
    name = response(client)[1].decode()
    client.sock.close()
    return name


@pytest.mark.parametrize("each", SETS.values(), ids=SETS)
def test_the_same_requests_go_to_the_same_backends(each, pki, make_backend, start, short_path):
    backends = [make_backend(Site(name)) for name in each.routes]
    gateway = start(
        listener_table(route_table(pki))
        + pool_table(
            pki,
            [backend.address for backend in backends],
            sticky="cookie",
            routes=each.routes,
            **each.relay,
        )
    )
    context = context_of(pki)
    ports = [backend.port for backend in backends]
    with Httpd(short_path, pki, ports, routes=each.routes, sticky=each.httpd) as httpd:
        # Twice: a backend chosen in turn would differ the second time.
        chosen = {
            who: [[visit(port, context, how) for how in each.requests] for _ in range(2)]
            for who, port in (("httpd", httpd.port), ("relay", gateway.port()))
        }
    pairs = zip(each.requests, *chosen["httpd"], *chosen["relay"], strict=True)
    assert [line for line in pairs if len(set(line[1:])) > 1] == []
    assert set(chosen["relay"][0]) == set(each.routes)
