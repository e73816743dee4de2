"""Rules of passthrough routes and of backends on unix sockets."""

import pytest

FILES = 'machine_certificate = "ssl/client.pem"\nmachine_key = "ssl/client.pem"\n'
FILES += 'backend_ca = "ssl/ca.pem"\n'
OF_ROUTE = 'certificate = "ssl/server.pem"\nprivate_key = "ssl/server.pem"\n'
OF_ROUTE += 'client_ca = "ssl/ca.pem"\n'
THROUGH = ('pool = "web"\n' + OF_ROUTE, 'pool = "web"\nmode = "passthrough"\n')
NO_FILES = ("[pool.web]\n" + FILES, "[pool.web]\n")
FIRST = ('address = "192.0.2.1:443"', 'address = "unix:run/app.sock"\npeer_user = "app"')
SECOND = ('address = "192.0.2.2:443"', 'address = "unix:/run/b.sock"\npeer_user = "0"')
HEADER = 'send_proxy = "v2"\nsend_proxy_certificate = true\n'
HEADER += 'send_proxy_tlvs = ["authority", "alpn", "ssl_cn"]\n'
WRONG = {
    "a certificate that passthrough does not use": (
        (THROUGH,),
        [f"pool.web.{key}" for key in ("backend_ca", "machine_certificate", "machine_key")],
        "only passthrough routes use this pool",
    ),
    "a GET of a backend that is passed through": (
        (THROUGH, ("[pool.web]\n" + FILES, '[pool.web]\nhealth = { http_get = "/" }\n')),
        ["pool.web.health.http_get"],
        "is not possible",
    ),
    "sticky by what passthrough cannot see": (
        (THROUGH, ("[pool.web]\n" + FILES, '[pool.web]\nsticky = "identity"\n')),
        ["listener.https.route[0].pool"],
        "sticky by identity, which passthrough routes cannot see",
    ),
    "parts of a PROXY header that passthrough does not know": (
        (
            THROUGH,
            (
                "[pool.web]\n" + FILES,
                "[pool.web]\n" + HEADER,
            ),
        ),
        [
            "pool.web.send_proxy_certificate",
            "pool.web.send_proxy_tlvs[1]",
            "pool.web.send_proxy_tlvs[2]",
        ],
        "only passthrough routes use this pool",
    ),
    "a unix socket beside a TCP address": (
        (NO_FILES, FIRST),
        ["pool.web.backend[1].address"],
        "is not a unix socket, but pool.web.backend[0] is one",
    ),
    "a unix socket without a user": (
        (NO_FILES, SECOND, ('address = "192.0.2.1:443"', 'address = "unix:/run/a.sock"')),
        ["pool.web.backend[0].peer_user"],
        "any user could listen in place of the backend",
    ),
    "a user of a TCP address": (
        (('address = "192.0.2.1:443"', 'address = "192.0.2.1:443"\npeer_user = "app"'),),
        ["pool.web.backend[0].peer_user"],
        "is not a unix socket",
    ),
    "TLS on a unix socket": (
        (FIRST, SECOND),
        [f"pool.web.{key}" for key in ("backend_ca", "machine_certificate", "machine_key")],
        "there is no TLS on a unix socket",
    ),
    "an abstract socket": (
        (NO_FILES, SECOND, (FIRST[0], 'address = "unix:@app"\npeer_user = "app"')),
        ["pool.web.backend[0].address"],
        "names an abstract socket",
    ),
    "no path": (
        (NO_FILES, SECOND, (FIRST[0], 'address = "unix:"\npeer_user = "app"')),
        ["pool.web.backend[0].address"],
        "does not name a file",
    ),
}


@pytest.mark.parametrize(("edits", "where", "what"), WRONG.values(), ids=WRONG)
def test_what_needs_tls_is_refused_without_it(problems, edits, where, what):
    found = problems(*edits)
    assert [each.where for each in found] == where
    assert all(what in each.what and each.remedy for each in found)


def test_plain_tcp_is_never_possible(problems):
    """A terminating route needs the files, unless the backends are unix sockets."""
    assert [each.where for each in problems(NO_FILES)] == [
        f"pool.web.{key}" for key in ("machine_certificate", "machine_key", "backend_ca")
    ]


def test_passthrough_needs_no_certificates(load):
    config = load(THROUGH, NO_FILES)
    assert config.pool["web"].is_plain
    assert config.listener[0].terminating == config.listener[0].route[1:]


def test_a_pool_may_serve_both_kinds_of_routes(load):
    """The certificates are for the terminating route."""
    config = load(
        (THROUGH[0], 'pool = "rest"\nmode = "passthrough"\n'),
        ("[pool.web]\n" + FILES, ""),
        ('[[pool.web.backend]]\nroute = "w1"\naddress = "192.0.2.1:443"\n', ""),
        ('[[pool.web.backend]]\nroute = "w2"\naddress = "192.0.2.2:443"\n', ""),
    )
    assert not config.pool["rest"].is_plain


def test_paths_of_sockets_are_relative_to_the_file(load, tmp_path):
    backends = load(NO_FILES, FIRST, SECOND).pool["web"].backend
    assert [each.unix_path for each in backends] == [f"{tmp_path}/run/app.sock", "/run/b.sock"]
