"""Rules of how clients reach a listener, and a pool its backends: one problem each."""

import pytest

LISTEN = 'listen = ["127.0.0.1:8443", "[::1]:8443"]'
WEB, FIRST = "[pool.web]", 'address = "192.0.2.1:443"'
AT, BACKEND = "listener.https", "pool.web.backend[0]"
UNIX = '"unix:/run/relay/in.sock"'


def listener(*lines):
    """The listener with these keys more."""
    return (LISTEN, "\n".join((LISTEN, *lines)))


def listens(addresses, proxies=""):
    return (LISTEN, f"listen = [{addresses}]\n{proxies}")


def pool(*lines):
    return (WEB, "\n".join((WEB, *lines)))


def first(address, *lines):
    return (FIRST, "\n".join((f'address = "{address}"', *lines)))


FROM_UNIX = 'accept_proxy = { from = ["unix"] }'
CASES = {
    # Unix sockets to listen on.
    "a unix socket without a balancer": (
        (listens(UNIX),),
        f"{AT}.listen[0]",
        "needs a balancer that says who the client is, and accept_proxy has no",
    ),
    "a unix socket with balancers elsewhere": (
        (listens(UNIX, 'accept_proxy = { from = ["10.0.0.0/8"] }'),),
        f"{AT}.listen[0]",
        'set accept_proxy = { from = ["unix"] }',
    ),
    "a unix socket twice": (
        (listens(f"{UNIX}, {UNIX}", FROM_UNIX),),
        f"{AT}.listen[0]",
        "is used twice; give each its own path",
    ),
    "a unix socket of the admin page": (
        (listens(UNIX, FROM_UNIX), ('listen = "127.0.0.1:9180"', f"listen = {UNIX}")),
        f"{AT}.listen[0]",
        "is used twice",
    ),
    "a unix socket without a path": (
        (listens('"unix:"', FROM_UNIX),),
        f"{AT}.listen[0]",
        'write "unix:/run/relay/in.sock"',
    ),
    "a balancer on unix, and no socket": (
        (listener('accept_proxy = { from = ["10.0.0.1", "unix"] }'),),
        f"{AT}.accept_proxy.from[1]",
        "has no effect: the listener has no unix socket",
    ),
    "an address that nobody can use": (
        (listens(f'"127.0.0.1:8443", {UNIX}', FROM_UNIX),),
        f"{AT}.accept_proxy.from",
        "names no address, so nobody could use the listener's IP addresses",
    ),
    "a balancer that is not an address": (
        (listener('accept_proxy = { from = ["lb.example.com"] }'),),
        f"{AT}.accept_proxy.from[0]",
        "is not an IP address or network",
    ),
    "a balancer with a scope": (
        (listener('accept_proxy = { from = ["fe80::1%eth0"] }'),),
        f"{AT}.accept_proxy.from[0]",
        "is not an IP address or network",
    ),
    "a balancer as IPv4 in IPv6": (
        (listener('accept_proxy = { from = ["::ffff:10.0.0.1"] }'),),
        f"{AT}.accept_proxy.from[0]",
        'is an IPv4 address written as IPv6; write "10.0.0.1"',
    ),
    "a network of balancers with host bits": (
        (listener('accept_proxy = { from = ["10.1.2.3/8"] }'),),
        f"{AT}.accept_proxy.from[0]",
        'write "10.0.0.0/8" for the network, or "10.1.2.3" for the one address',
    ),
    # The rate of new connections.
    "a burst without a rate": (
        (listener("per_client_burst = 10"),),
        f"{AT}.per_client_burst",
        "has no effect without per_client_rate",
    ),
    "a rate that fills no burst in a day": (
        (listener("per_client_rate = 0.001", "per_client_burst = 1000"),),
        f"{AT}.per_client_rate",
        "0.001 per second takes longer than a day to fill a burst of 1000",
    ),
    "a rate below zero": (
        (listener("per_client_rate = -1"),),
        f"{AT}.per_client_rate",
        "must be",
    ),
    # Probes.
    "probes that are logged": (
        (listener('probes_from = ["10.0.0.1"]'),),
        f"{AT}.probes_from",
        "has no effect: log_probes is true, so every probe is logged",
    ),
    "a probe from a name": (
        (listener("log_probes = false", 'probes_from = ["10.0.0.1", "monitor"]'),),
        f"{AT}.probes_from[1]",
        "is not an IP address or network",
    ),
    # The life of a connection.
    "keepalive of both kinds": (
        (listener("keepalive = true"),),
        f"{AT}.keepalive",
        "write keepalive = { idle_s = 60, interval_s = 10, count = 6 }, or false",
    ),
    "keepalive without a pause": (
        (listener("keepalive = { idle_s = 0 }"),),
        f"{AT}.keepalive.idle_s",
        "must be",
    ),
    "keepalive of a pool without a try": (
        (pool("keepalive = { count = 0 }"),),
        "pool.web.keepalive.count",
        "must be",
    ),
    "a session that ends before it begins": (
        (listener("max_session_s = -1"),),
        f"{AT}.max_session_s",
        "must be",
    ),
    "a session without an end": (
        (listener("max_session_s = inf"),),
        f"{AT}.max_session_s",
        "must be",
    ),
    # The address that connections to backends come from.
    "a source that is a name": (
        (pool('source = "eth0"'),),
        "pool.web.source",
        '"eth0" is not an IP address; write an IP address of this machine',
    ),
    "a source that is every address": (
        (pool('source = "0.0.0.0"'),),
        "pool.web.source",
        "stands for every address, and a connection comes from one",
    ),
    "a source that is many machines": (
        (pool('source = "224.0.0.1"'),),
        "pool.web.source",
        "is a multicast address",
    ),
    "two sources of one kind": (
        (pool('source = ["192.0.2.10", "192.0.2.11"]'),),
        "pool.web.source[1]",
        '"192.0.2.11" is a second IPv4 address, after pool.web.source[0]',
    ),
    "a source of another kind than the backend": (
        (pool('source = "2001:db8::10"'),),
        "pool.web.source",
        "add the IPv4 address to connect from: source = [IPv4, IPv6]",
    ),
    # The server name for a backend.
    "a server name that is an address": (
        (pool('sni = "192.0.2.1"'),),
        "pool.web.sni",
        "is an IP address, which is never sent as server name (RFC 6066, section 3)",
    ),
    "a server name of one backend that is none": (
        (first("192.0.2.1:443", 'sni = "not a name"'),),
        f"{BACKEND}.sni",
        'write a host name, or "client" for the name that the client has sent',
    ),
    "the client's name in capitals": (
        (pool('sni = "Client"'),),
        "pool.web.sni",
        'did you mean "client", for the name that the client has sent?',
    ),
    "a server name that no backend uses": (
        (
            pool('sni = "a.example.com"'),
            first("192.0.2.1:443", 'sni = "b.example.com"'),
            ('address = "192.0.2.2:443"', 'address = "192.0.2.2:443"\nsni = "c.example.com"'),
        ),
        "pool.web.sni",
        "has no effect, because every backend of the pool has its own sni",
    ),
    # Services.
    "a service without a name": (
        (first("srv:"),),
        f"{BACKEND}.address",
        'for example "srv:_https._tcp.app.example.com"',
    ),
    "a service with a port": (
        (first("srv:_https._tcp.app.example.com:443"),),
        f"{BACKEND}.address",
        "srv:_https._tcp.app.example.com",
    ),
    "a service in capitals": (
        (first("SRV:_https._tcp.app.example.com"),),
        f"{BACKEND}.address",
        "srv:",
    ),
    # PostgreSQL.
    "postgres with cookies": (
        (pool('starttls = "postgres"', 'sticky = "cookie"'),),
        "pool.web.sticky",
        'is by cookie, and PostgreSQL has no cookies; write "source" or "identity"',
    ),
    "postgres with a GET": (
        (pool('starttls = "postgres"', 'health = { http_get = "/" }'),),
        "pool.web.health.http_get",
        "is not possible with starttls: PostgreSQL does not speak HTTP",
    ),
    "clients of postgres with cookies": (
        (('pool = "web"', 'pool = "web"\nstarttls = "postgres"'), pool('sticky = "cookie"')),
        f"{AT}.route[0].starttls",
        'is for PostgreSQL, and pool "web" is sticky by cookie',
    ),
    "clients of postgres without its protocol": (
        (('pool = "web"', 'pool = "web"\nstarttls = "postgres"\nalpn = ["http/1.1"]'),),
        f"{AT}.route[0].alpn",
        'lacks "postgresql", which clients require that begin with TLS',
    ),
    "another protocol than postgres": (
        (pool('starttls = "smtp"'),),
        "pool.web.starttls",
        "postgres",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_broken_rule_is_a_problem_at_its_key_path(problems, case):
    edits, where, words = case
    found = problems(*edits)
    assert where in [each.where for each in found], found
    [problem] = [each for each in found if each.where == where]
    assert words in f"{problem.what}; {problem.remedy}"
    assert all("\n" not in str(each) for each in found)


@pytest.mark.parametrize(
    "edits",
    [
        [listens(f'"127.0.0.1:8443", {UNIX}', 'accept_proxy = { from = ["unix", "::1"] }')],
        [listens(UNIX, FROM_UNIX)],
        [listener("per_client_rate = 5", "per_client_prefix_v6 = 48")],
        [listener("per_client_burst = 0")],
        [listener("log_probes = false", 'probes_from = ["10.0.0.0/8", "::1"]')],
        [listener("keepalive = false", "max_session_s = 3600")],
        [pool('source = ["192.0.2.10", "2001:db8::10"]')],
        [pool('sni = "client"')],
        [first("srv:_https._tcp.app.example.com")],
        [pool('starttls = "postgres"', 'sticky = "source"')],
        [('pool = "web"', 'pool = "web"\nstarttls = "postgres"')],
    ],
    ids=str,
)
def test_what_these_keys_allow(problems, edits):
    assert problems(*edits) == ()
