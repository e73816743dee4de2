"""Rules across keys: one problem at one key path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from relay.config.rules.general import check_rules

SNI = '["app.example.com"]'
POOL = "[pool.web]"
ROUTE = 'pool = "web"'

CASES = {
    "parts of a header that has none": (
        (POOL, '[pool.web]\nsend_proxy = "v1"\nsend_proxy_tlvs = ["ssl"]'),
        ["pool.web.send_proxy_tlvs"],
        'has no effect with send_proxy = "v1", which has only addresses',
    ),
    "a certificate without a header": (
        (POOL, "[pool.web]\nsend_proxy_certificate = true"),
        ["pool.web.send_proxy_certificate"],
        'has no effect without send_proxy; set send_proxy = "v2" or "v2-inside-tls"',
    ),
    "a misspelt part of a header": (
        (POOL, '[pool.web]\nsend_proxy = "v2"\nsend_proxy_tlvs = ["ssl_cnn"]'),
        ["pool.web.send_proxy_tlvs[0]"],
        'there is no TLV "ssl_cnn"; did you mean "ssl_cn"?',
    ),
    "a part of a header that is not there": (
        (POOL, '[pool.web]\nsend_proxy = "v2"\nsend_proxy_tlvs = ["netns"]'),
        ["pool.web.send_proxy_tlvs[0]"],
        'write some of "alpn", "authority", "unique_id", "ssl", "ssl_version"',
    ),
    "the certificate as a part of a header": (
        (POOL, '[pool.web]\nsend_proxy = "v2"\nsend_proxy_tlvs = ["certificate"]'),
        ["pool.web.send_proxy_tlvs[0]"],
        "set send_proxy_certificate = true",
    ),
    "a part of a header twice": (
        (POOL, '[pool.web]\nsend_proxy = "v2"\nsend_proxy_tlvs = ["alpn", "alpn"]'),
        ["pool.web.send_proxy_tlvs[1]"],
        "is already in the list; remove it",
    ),
    "a passphrase in the file of the key": (
        ('private_key = "ssl/server.pem"', 'private_key = "k"\nkey_passphrase_file = "k"'),
        ["listener.https.route[0].key_passphrase_file"],
        "is the same file as private_key",
    ),
    "a passphrase in the file of the machine key": (
        ('machine_key = "ssl/client.pem"', 'machine_key = "k"\nkey_passphrase_file = "k"'),
        ["pool.web.key_passphrase_file"],
        "is the same file as machine_key",
    ),
    # Names that refer to something.
    "a pool that is not there": (
        (ROUTE, 'pool = "web"\n'),
        ("[pool.web]", "[pool.wob]"),
        ("[[pool.web.backend]]", "[[pool.wob.backend]]"),
        ("[[pool.web.backend]]", "[[pool.wob.backend]]"),
        ["listener.https.route[0].pool"],
        'there is no pool "web"; did you mean "wob"?',
    ),
    "a pool with no similar name": (
        ('pool = "rest"', 'pool = "zzz"'),
        ["listener.https.route[1].pool", "pool.rest"],
        'add a [pool.zzz]; there are: "web", "rest"',
    ),
    "a look at files all the time": (
        ("workers = 2", "watch_s = 0.01"),
        ["relay.watch_s"],
        "set it to 0.1 or more",
    ),
    "an unused pool": (
        (POOL, '[pool.idle]\nbackend = [{route = "x", address = "192.0.2.9:1"}]\n[pool.web]'),
        ["pool.idle"],
        "no route leads to this pool",
    ),
    "an odd pool name": (
        ("[admin]", "[admin]"),
        ('pool = "rest"', 'pool = "re st"'),
        ("[pool.rest]", '[pool."re st"]'),
        ("[[pool.rest.backend]]", '[[pool."re st".backend]]'),
        ['pool."re st"'],
        "cannot name a pool",
    ),
    "an odd listener name": (
        ('name = "https"', 'name = "ht tps"'),
        ["listener[0].name"],
        "cannot name a listener",
    ),
    "two listeners of one name": (
        (
            "[pool.web]",
            (
                '[[listener]]\nname = "https"\nlisten = ["127.0.0.1:9"]\n'
                'route = [{pool = "rest", certificate = "a", private_key = "a", '
                'client_ca = "a"}]\n'
                "[pool.web]"
            ),
        ),
        ["listener[1].name"],
        '"https" is already the name of listener[0]',
    ),
    "two backends of one route": (
        ('route = "w2"', 'route = "w1"'),
        ["pool.web.backend[1].route"],
        '"w1" is already the route of pool.web.backend[0]',
    ),
    # PROXY headers.
    "PROXY headers from a network with host bits": (
        ('name = "https"', 'name = "https"\naccept_proxy = { from = ["10.1.2.3/8"] }'),
        ["listener.https.accept_proxy.from[0]"],
        'has bits outside of its prefix; write "10.0.0.0/8" for the network, or "10.1.2.3"',
    ),
    "PROXY headers from a name": (
        ('name = "https"', 'name = "https"\naccept_proxy = { from = ["lb.example.com"] }'),
        ["listener.https.accept_proxy.from[0]"],
        '"lb.example.com" is not an IP address or network; write an address such as "192.0.2.7"',
    ),
    "PROXY headers from IPv4 written as IPv6": (
        ('name = "https"', 'name = "https"\naccept_proxy = { from = ["::ffff:192.0.2.7"] }'),
        ["listener.https.accept_proxy.from[0]"],
        'is an IPv4 address written as IPv6; write "192.0.2.7"',
    ),
    # Addresses.
    "one address twice": (
        ("[::1]:8443", "127.0.0.1:8443"),
        ["listener.https.listen[1]"],
        "is already used by listener.https.listen[0]",
    ),
    "one address in two spellings": (
        ("127.0.0.1:8443", "[::0001]:8443"),
        ["listener.https.listen[1]"],
        "is already used",
    ),
    "an address and all addresses": (
        ("[::1]:8443", "0.0.0.0:8443"),
        ["listener.https.listen[1]"],
        'is already used by listener.https.listen[0], "127.0.0.1:8443"',
    ),
    "the admin's port taken by all addresses": (
        ("127.0.0.1:8443", "0.0.0.0:9180"),
        ["admin.listen"],
        'is already used by listener.https.listen[0], "0.0.0.0:9180"',
    ),
    "the admin's address taken": (
        ("127.0.0.1:9180", "127.0.0.1:8443"),
        ["admin.listen"],
        "is already used by listener.https.listen[0]",
    ),
    "a name to listen on": (
        ("127.0.0.1:8443", "localhost:8443"),
        ["listener.https.listen[0]"],
        'is not an IP address; write an address of this machine, for example "127.0.0.1:8443"',
    ),
    "a star to listen on": (
        ("127.0.0.1:8443", "*:8443"),
        ["listener.https.listen[0]"],
        "has no host",
    ),
    "a backend without port": (
        ("192.0.2.1:443", "192.0.2.1"),
        ["pool.web.backend[0].address"],
        "has no port",
    ),
    "a backend at port 0": (
        ("192.0.2.1:443", "192.0.2.1:0"),
        ["pool.web.backend[0].address"],
        "from 1 to 65535",
    ),
    "a comma in a backend's route": (
        ('route = "w1"', 'route = "w,1"'),
        ["pool.web.backend[0].route"],
        "cannot be the end of a cookie value",
    ),
    "PostgreSQL and cookies in a pool": (
        (POOL, f'{POOL}\nstarttls = "postgres"\nsticky = "cookie"'),
        ["pool.web.sticky"],
        "PostgreSQL has no cookies",
    ),
    "PostgreSQL and an HTTP check": (
        (POOL, f'{POOL}\nstarttls = "postgres"\nhealth = {{ http_get = "/" }}'),
        ["pool.web.health.http_get"],
        "PostgreSQL does not speak HTTP",
    ),
    "PostgreSQL's clients without their protocol": (
        (ROUTE, 'pool = "web"\nstarttls = "postgres"\nalpn = ["h2"]'),
        ["listener.https.route[0].alpn"],
        'lacks "postgresql"',
    ),
    "an IP address as the pool's server name": (
        (POOL, f'{POOL}\nsni = "192.0.2.1"'),
        ["pool.web.sni"],
        "never sent as server name",
    ),
    "an IPv6 address as a backend's server name": (
        ('route = "w1"', 'route = "w1"\nsni = "[::1]"'),
        ["pool.web.backend[0].sni"],
        "never sent as server name",
    ),
    "a server name that is none": (
        (POOL, f'{POOL}\nsni = "*.example.com"'),
        ["pool.web.sni"],
        '"client" for the name that the client has sent',
    ),
    "a source that is a name": (
        (POOL, f'{POOL}\nsource = "gw.example.com"'),
        ["pool.web.source"],
        "is not an IP address",
    ),
    "a source that is every address": (
        (POOL, f'{POOL}\nsource = "0.0.0.0"'),
        ["pool.web.source"],
        "stands for every address",
    ),
    "the client's name in capitals": (
        (POOL, f'{POOL}\nsni = "Client"'),
        ["pool.web.sni"],
        'did you mean "client"',
    ),
    "two sources of one family": (
        (POOL, f'{POOL}\nsource = ["192.0.2.8", "192.0.2.9"]'),
        ["pool.web.source[1]"],
        "is a second IPv4 address",
    ),
    "a source of the wrong family": (
        (POOL, f'{POOL}\nsource = "::1"'),
        ["pool.web.source"],
        'has no IPv4 address, and pool.web.backend[0] is at "192.0.2.1"',
    ),
    "a separator of two characters": (
        (POOL, f'{POOL}\nsticky = "cookie"\ncookie_separator = "::"'),
        ["pool.web.cookie_separator"],
        '"::" is not one character',
    ),
    "a letter as separator": (
        (POOL, f'{POOL}\nsticky = "cookie"\ncookie_separator = "x"'),
        ["pool.web.cookie_separator"],
        "can separate a session id",
    ),
    "a separator that ends a cookie": (
        (POOL, f'{POOL}\nsticky = "cookie"\ncookie_separator = ";"'),
        ["pool.web.cookie_separator"],
        "without ; , ",
    ),
    "a separator without a cookie": (
        (POOL, f'{POOL}\ncookie_separator = ":"'),
        ["pool.web.cookie_separator"],
        'has no effect with sticky = "none"',
    ),
    "a name in the URL without a cookie": (
        (POOL, f'{POOL}\ncookie_in_url = "sid"'),
        ["pool.web.cookie_in_url"],
        'has no effect with sticky = "none"',
    ),
    "a name in the URL that is none": (
        (POOL, f'{POOL}\nsticky = "cookie"\ncookie_in_url = "a=b"'),
        ["pool.web.cookie_in_url"],
        "cannot be a parameter's name in a URL",
    ),
    "a semicolon in a backend's route": (
        ('route = "w1"', 'route = "w;1"'),
        ["pool.web.backend[0].route"],
        "cannot be the end of a cookie value",
    ),
    "a space in a backend's route": (
        ('route = "w1"', 'route = "w 1"'),
        ["pool.web.backend[0].route"],
        "cannot be the end of a cookie value",
    ),
    "a wildcard to verify": (
        ('route = "w1"', 'route = "w1"\nname = "*.example.com"'),
        ["pool.web.backend[0].name"],
        "has the label",
    ),
    # Server names.
    "an IP address as server name": (
        (SNI, '["192.0.2.1"]'),
        ["listener.https.route[0].sni[0]"],
        "RFC 6066, section 3",
    ),
    "an IPv6 address as server name": (
        (SNI, '["[::1]"]'),
        ["listener.https.route[0].sni[0]"],
        "RFC 6066, section 3",
    ),
    "a star alone": (
        (SNI, '["*"]'),
        ["listener.https.route[0].sni[0]"],
        "a route without sni matches everything",
    ),
    "a star in the middle": (
        (SNI, '["a.*.example.com"]'),
        ["listener.https.route[0].sni[0]"],
        "not its whole first label",
    ),
    "a star in a label": (
        (SNI, '["a*.example.com"]'),
        ["listener.https.route[0].sni[0]"],
        "not its whole first label",
    ),
    "two stars": (
        (SNI, '["*.*.example.com"]'),
        ["listener.https.route[0].sni[0]"],
        "not its whole first label",
    ),
    "a star and nothing": ((SNI, '["*."]'), ["listener.https.route[0].sni[0]"], "is empty"),
    "an empty server name": ((SNI, '[""]'), ["listener.https.route[0].sni[0]"], "is empty"),
    "a space in a server name": (
        (SNI, '["a b.example.com"]'),
        ["listener.https.route[0].sni[0]"],
        "letters, digits, hyphens and underscores",
    ),
    "umlauts in a server name": (
        (SNI, '["bücher.example"]'),
        ["listener.https.route[0].sni[0]"],
        "xn--",
    ),
    "a server name that is too long": (
        (SNI, '["' + ".".join(["abcdefg"] * 32) + '"]'),
        ["listener.https.route[0].sni[0]"],
        "at most 253",
    ),
    # Unreachable routes.
    "a default route that is not the last": (
        (f"sni = {SNI}", ""),
        ["listener.https.route[0].sni"],
        "listener.https.route[1] and the routes after it can never match",
    ),
    "a name that an earlier route matches": (
        ('pool = "rest"', 'sni = ["b.example.com", "APP.example.com"]\npool = "rest"'),
        ["listener.https.route[1].sni[1]"],
        "can never match: listener.https.route[0].sni[0] matches it first",
    ),
    "a name that an earlier wildcard matches": (
        (SNI, '["*.example.com"]'),
        ('pool = "rest"', 'sni = ["a.example.com"]\npool = "rest"'),
        ["listener.https.route[1].sni[0]"],
        "matches it first",
    ),
    "a name twice in one route": (
        (SNI, '["a.example.com", "a.example.com"]'),
        ["listener.https.route[0].sni[1]"],
        "matches it first",
    ),
    # TLS.
    "no certificate": (
        ('certificate = "ssl/server.pem"\n', ""),
        ["listener.https.route[0].certificate"],
        "is missing",
    ),
    "no client CA": (
        ('client_ca = "ssl/ca.pem"\n', ""),
        ["listener.https.route[0].client_ca"],
        "client verification cannot be turned off",
    ),
    "no machine certificate": (
        ('machine_certificate = "ssl/client.pem"\n', ""),
        ["pool.web.machine_certificate"],
        "is missing, and listener.https.route[0] uses this pool",
    ),
    "no machine key": (
        ('machine_key = "ssl/client.pem"\n', ""),
        ["pool.web.machine_key"],
        "may be the same file",
    ),
    "no backend CA": (
        ('backend_ca = "ssl/ca.pem"\n', ""),
        ["pool.web.backend_ca"],
        "backend verification cannot be turned off",
    ),
    "ciphers for a version that is off": (
        (ROUTE, 'pool = "web"\nmin_version = "TLSv1.3"\nciphers_tls12 = "HIGH"'),
        ["listener.https.route[0].ciphers_tls12"],
        "has no effect",
    ),
    "server certificates without an allow": (
        (ROUTE, 'pool = "web"\naccept_server_certificates = true'),
        ["listener.https.route[0].accept_server_certificates"],
        "needs an allow",
    ),
    "server certificates with a deny alone": (
        (ROUTE, 'pool = "web"\naccept_server_certificates = true\ndeny = {cn = ["a"]}'),
        ["listener.https.route[0].accept_server_certificates"],
        "needs an allow",
    ),
    "a newest version before the oldest": (
        (ROUTE, 'pool = "web"\nmin_version = "TLSv1.3"\nmax_version = "TLSv1.2"'),
        ["listener.https.route[0].max_version"],
        '"TLSv1.2" is older than min_version, "TLSv1.3"; raise it, or lower min_version',
    ),
    "a pool's newest version before the oldest": (
        (POOL, '[pool.web]\nmin_version = "TLSv1.3"\nmax_version = "TLSv1.2"'),
        ["pool.web.max_version"],
        "is older than min_version",
    ),
    "suites for a version that is off": (
        (
            ROUTE,
            (
                'pool = "web"\nmax_version = "TLSv1.2"\n'
                'ciphersuites_tls13 = "TLS_AES_128_GCM_SHA256"'
            ),
        ),
        ["listener.https.route[0].ciphersuites_tls13"],
        'has no effect with max_version = "TLSv1.2"',
    ),
    "no ciphers": (
        (POOL, '[pool.web]\nciphersuites_tls13 = " "'),
        ["pool.web.ciphersuites_tls13"],
        "is empty",
    ),
    "ciphers cut by a null": (
        (ROUTE, 'pool = "web"\nciphers_tls12 = "HIGH\\u0000"'),
        ["listener.https.route[0].ciphers_tls12"],
        "no cipher or group has in its name",
    ),
    "groups of two lines": (
        (POOL, '[pool.web]\ngroups = "X25519\\nP-256"'),
        ["pool.web.groups"],
        "no cipher or group has in its name",
    ),
    "an empty protocol": (
        (ROUTE, 'pool = "web"\nalpn = [""]'),
        ["listener.https.route[0].alpn[0]"],
        "is not a protocol name",
    ),
    "a long protocol": (
        (ROUTE, f'pool = "web"\nalpn = ["{"x" * 256}"]'),
        ["listener.https.route[0].alpn[0]"],
        "1 to 255",
    ),
    "a protocol beyond ASCII": (
        (ROUTE, 'pool = "web"\nalpn = ["h²"]'),
        ["listener.https.route[0].alpn[0]"],
        "is not a protocol name",
    ),
    "a protocol twice": (
        (ROUTE, 'pool = "web"\nalpn = ["h2", "h2"]'),
        ["listener.https.route[0].alpn[1]"],
        "already in the list",
    ),
    "a short fingerprint": (
        (ROUTE, 'pool = "web"\nallow = {fingerprint_sha256 = ["AB:CD"]}'),
        ["listener.https.route[0].allow.fingerprint_sha256[0]"],
        "64 hexadecimal digits",
    ),
    "a fingerprint of words": (
        (ROUTE, f'pool = "web"\nallow = {{fingerprint_sha256 = ["{"g" * 64}"]}}'),
        ["listener.https.route[0].allow.fingerprint_sha256[0]"],
        "-fingerprint -sha256",
    ),
    "an allow rule that matches nothing": (
        (ROUTE, 'pool = "web"\nallow = {cn = [""]}'),
        ["listener.https.route[0].allow.cn[0]"],
        "cannot match any certificate",
    ),
    "an allow rule of two stars inside a segment": (
        (ROUTE, 'pool = "web"\nallow = {san_uri = ["spiffe://corp/web**"]}'),
        ["listener.https.route[0].allow.san_uri[0]"],
        "not a whole path segment",
    ),
    "an allow that lists nothing": (
        (ROUTE, 'pool = "web"\nallow = {}'),
        ["listener.https.route[0].allow"],
        "which would allow every client; name at least one certificate",
    ),
    "an allow of empty lists": (
        (
            ROUTE,
            (
                'pool = "web"\n'
                "allow = {cn = [], ou = [], san_dns = [], san_uri = [], "
                "fingerprint_sha256 = []}"
            ),
        ),
        ["listener.https.route[0].allow"],
        "which would allow every client",
    ),
    "an allow table with an empty list": (
        ("[pool.web]", "[listener.route.allow]\ncn = []\n[pool.web]"),
        ["listener.https.route[1].allow"],
        "which would allow every client",
    ),
    "an allow of white space": (
        (ROUTE, 'pool = "web"\nallow = {cn = ["  "]}'),
        ["listener.https.route[0].allow.cn[0]"],
        "cannot match any certificate",
    ),
    "an allow of an invisible space": (
        (ROUTE, 'pool = "web"\nallow = {ou = ["\\u200b"]}'),
        ["listener.https.route[0].allow.ou[0]"],
        "cannot match any certificate",
    ),
    "an allow of no name": (
        (ROUTE, 'pool = "web"\nallow = {san_dns = [""]}'),
        ["listener.https.route[0].allow.san_dns[0]"],
        "is empty",
    ),
    "an allow with a slip in its key": (
        (ROUTE, 'pool = "web"\nallow = {sandns = ["a.corp"]}'),
        ["listener.https.route[0].allow.sandns"],
        "did you mean san_dns?",
    ),
    "an allow rule with a star inside": (
        (ROUTE, 'pool = "web"\nallow = {san_dns = ["a.*.corp"]}'),
        ["listener.https.route[0].allow.san_dns[0]"],
        "not its whole first label",
    ),
    "a deny that lists nothing": (
        (ROUTE, 'pool = "web"\ndeny = {}'),
        ["listener.https.route[0].deny"],
        "denies no client",
    ),
    "a deny of empty lists": (
        (ROUTE, 'pool = "web"\ndeny = {cn = [], issuer = [], ip = [], email = [], serial = []}'),
        ["listener.https.route[0].deny"],
        "denies no client",
    ),
    "an allow of empty new lists": (
        (ROUTE, 'pool = "web"\nallow = {issuer = [], ip = [], email = [], serial = []}'),
        ["listener.https.route[0].allow"],
        "which would allow every client",
    ),
    # Health checks and names.
    "a health path without slash": (
        (POOL, '[pool.web]\nhealth = {http_get = "health"}'),
        ["pool.web.health.http_get"],
        "is not a URL path",
    ),
    "a health path with a space": (
        (POOL, '[pool.web]\nhealth = {http_get = "/a b"}'),
        ["pool.web.health.http_get"],
        "is not a URL path",
    ),
    "a health path with a line end": (
        (POOL, '[pool.web]\nhealth = {http_get = "/a\\r\\nHost: x"}'),
        ["pool.web.health.http_get"],
        "is not a URL path",
    ),
    "statuses in words": (
        (POOL, '[pool.web]\nhealth = {http_get = "/", http_status = "ok"}'),
        ["pool.web.health.http_status"],
        "is not a list of HTTP statuses",
    ),
    "a status that is never final": (
        (POOL, '[pool.web]\nhealth = {http_get = "/", http_status = "100-399"}'),
        ["pool.web.health.http_status"],
        "below 200",
    ),
    "statuses backwards": (
        (POOL, '[pool.web]\nhealth = {http_get = "/", http_status = "399-200"}'),
        ["pool.web.health.http_status"],
        "ends before it begins: 399-200",
    ),
    "statuses of nothing": (
        (POOL, '[pool.web]\nhealth = {http_status = "200"}'),
        ["pool.web.health.http_status"],
        "has no effect without http_get",
    ),
    "a service with a port": (
        ('address = "192.0.2.1:443"', 'address = "srv:_https._tcp.app.example.com:443"'),
        ["pool.web.backend[0].address"],
        "the SRV records have the ports",
    ),
    "a service without a name": (
        ('address = "192.0.2.1:443"', 'address = "srv:"'),
        ["pool.web.backend[0].address"],
        "is empty",
    ),
    "a service without a domain": (
        ('address = "192.0.2.1:443"', 'address = "srv:_https._tcp"'),
        ["pool.web.backend[0].address"],
        "has no domain after the labels with an underscore",
    ),
    "look-ups of addresses": (
        (POOL, "[pool.web]\nresolve_s = 5"),
        ["pool.web.resolve_s"],
        "no backend's address is a name",
    ),
    # The access log.
    "a field that strftime does not have": (
        ('access = "-"', 'access = "a%Q.log"'),
        ["log.access"],
        "has %Q, which is not a strftime field",
    ),
    "a percent sign at the end": (
        ('access = "-"', 'access = "a%"'),
        ["log.access"],
        "a single % at its end",
    ),
    "a rotation without fields": (
        ('access = "-"', 'access = "a.log"\naccess_rotate_s = 43200'),
        ["log.access_rotate_s"],
        "has no effect",
    ),
    "a rotation of stdout": (
        ('access = "-"', 'access = "-"\naccess_rotate_s = 60'),
        ["log.access_rotate_s"],
        "has no effect",
    ),
    "a rotation of a percent sign": (
        ('access = "-"', 'access = "100%%.log"\naccess_rotate_s = 60'),
        ["log.access_rotate_s"],
        "has no effect",
    ),
    # Nothing configured is silently ignored.
    "closing sessions without health checks": (
        (POOL, '[pool.web]\non_down = "close"'),
        ["pool.web.on_down"],
        "has no effect without health checks",
    ),
    "a grace time of clients that may finish": (
        (ROUTE, 'pool = "web"\nat_expiry = "finish"\nexpiry_grace_s = 60'),
        ["listener.https.route[0].expiry_grace_s"],
        'has no effect with at_expiry = "finish"',
    ),
    "a grace time of backends that may finish": (
        (POOL, '[pool.web]\nat_expiry = "finish"\nexpiry_grace_s = 60'),
        ["pool.web.expiry_grace_s"],
        'has no effect with at_expiry = "finish"',
    ),
    "a load factor without hashing": (
        (POOL, "[pool.web]\nload_factor = 1.5"),
        ["pool.web.load_factor"],
        "has no effect",
    ),
    "a load factor below 1": (
        (POOL, '[pool.web]\nsticky = "source"\nload_factor = 0.5'),
        ["pool.web.load_factor"],
        "0 is no limit",
    ),
    "a prefix without hashing": (
        (POOL, "[pool.web]\nsource_prefix_v4 = 24"),
        ["pool.web.source_prefix_v4"],
        "has no effect",
    ),
    "the relay's cookie without stickiness": (
        (POOL, "[pool.web]\ncookie_insert = true"),
        ["pool.web.cookie_insert"],
        "has no effect",
    ),
    "a fallback without a cookie": (
        (POOL, '[pool.web]\nsticky_fallback = "balance"'),
        ["pool.web.sticky_fallback"],
        "has no effect",
    ),
    "a secret without a cookie": (
        (POOL, '[pool.web]\ncookie_secret_file = "a"'),
        ["pool.web.cookie_secret_file"],
        "has no effect",
    ),
    "an attribute without the relay's cookie": (
        (POOL, '[pool.web]\nsticky = "cookie"\ncookie_path = "/app"'),
        ["pool.web.cookie_path"],
        "without cookie_insert = true",
    ),
    "a cookie's name with a space": (
        (POOL, '[pool.web]\nsticky = "cookie"\ncookie = "SESSION ID"'),
        ["pool.web.cookie"],
        "cannot be a cookie's name",
    ),
    "the relay's cookie under an application's name": (
        (POOL, '[pool.web]\nsticky = "cookie"\ncookie_insert = true\ncookie_secret_file = "a"'),
        ["pool.web.cookie"],
        "give the relay's cookie a name of its own",
    ),
    "the relay's cookie without a secret": (
        (POOL, '[pool.web]\nsticky = "cookie"\ncookie_insert = true\ncookie = "R"'),
        ["pool.web.cookie_secret_file"],
        "openssl rand -hex 32",
    ),
    "the relay's cookie with an odd path": (
        (
            POOL,
            (
                '[pool.web]\nsticky = "cookie"\ncookie_insert = true\ncookie = "R"\n'
                'cookie_secret_file = "a"\ncookie_path = "/;x"'
            ),
        ),
        ["pool.web.cookie_path"],
        "semicolons",
    ),
    "the relay's cookie with SameSite None in the clear": (
        (
            POOL,
            (
                '[pool.web]\nsticky = "cookie"\ncookie_insert = true\ncookie = "R"\n'
                'cookie_secret_file = "a"\ncookie_same_site = "None"\n'
                "cookie_secure = false"
            ),
        ),
        ["pool.web.cookie_same_site"],
        "browsers ignore",
    ),
    "HTTP/2 where a cookie decides": (
        (ROUTE, 'pool = "web"\nalpn = ["h2", "http/1.1"]'),
        (POOL, '[pool.web]\nsticky = "cookie"'),
        ["listener.https.route[0].alpn"],
        '"http/1.1" only',
    ),
    "a cookie without stickiness": (
        (POOL, '[pool.web]\ncookie = "SID"'),
        ["pool.web.cookie"],
        "has no effect",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_broken_rule_is_one_problem_at_its_key_path(problems, case):
    *edits, where, words = case
    found = problems(*edits)
    assert [each.where for each in found] == where
    assert words in f"{found[0].what}; {found[0].remedy}"
    assert all(each.remedy and "\n" not in str(each) for each in found)


ENTRIES = {
    "ip": {
        "10.1.2.3/8": 'write "10.0.0.0/8" for the range, or "10.1.2.3" for the address',
        "2001:db8::1/32": 'write "2001:db8::/32" for the range',
        "10.0.0.0/33": "is not an IP address or a range",
        "10.0.0": "is not an IP address or a range",
        "10.0.0.0/": "does not end in the number of bits that count",
        "10.0.0.0/255.0.0.0": "does not end in the number of bits that count",
        "10.0.0.0/0.255.255.255": "does not end in the number of bits that count",
        "10.0.0.0/8/8": "does not end in the number of bits that count",
        "010.0.0.1": "is not an IP address or a range",
        "alice": "is not an IP address or a range",
        "": "is not an IP address or a range",
        "[2001:db8::1]": "is not an IP address or a range",
        "fe80::1%eth0": "has a scope",
        "::ffff:10.0.0.1": 'is an IPv4 address written as IPv6; write for example "10.0.0.1"',
        "::ffff:0:0/96": "is an IPv4 address written as IPv6",
    },
    "email": {
        "alice": "has no @",
        "": "has no @",
        "@example.com": "before the @",
        "*@*.example.com": "has a domain that",
        "a*@example.com": "before the @",
        "alice@": "has a domain that is empty",
        "alice@exam ple.com": "has a domain that",
        "al ice@example.com": "before the @",
        "alice@b@example.com": "before the @",
        "älice@example.com": "before the @",
        "alice@bücher.example": "xn--",
    },
    "serial": {
        "": "is not a serial number",
        "xyz": "is not a serial number",
        "0x12": "is not a serial number",
        "12 34": "is not a serial number",
        "serial=0A": "openssl x509 -in FILE -noout -serial",
        "f" * 130: "at most 128",
    },
    "issuer": {
        "": "neither the name of a CA nor its key id",
        "Clients CA": "neither the name of a CA nor its key id",
        "abc": "neither the name of a CA nor its key id",
        "ab:cd:e": "neither the name of a CA nor its key id",
        "CN": "neither the name of a CA nor its key id",
        "CN=": "has a value that is empty",
        "CN=a,": 'has the part "", which is not TYPE=value',
        "CN=a,b": 'has the part "b", which is not TYPE=value',
        "XX=a": 'has the unknown type "XX"',
        "1.2.=a": 'has the unknown type "1.2."',
        "CN=#0c0161": "in hexadecimal",
        "CN=a\\": "has a backslash before a character that needs none",
        "CN=a\\q": "has a backslash before a character that needs none",
        "CN=\\ff": "not UTF-8",
        "CN=a\\00": "not printable",
        'CN=a,O="Example, Inc."': 'has " without a backslash before it',
        "CN=a;O=b": "has ; without a backslash before it",
        "/C=DE/CN=a": 'has the unknown type "/C"',
    },
}


@pytest.mark.parametrize("depth", [0, 11])
def test_a_chain_depth_out_of_bounds_is_a_problem(problems, depth):
    for section, where in ((ROUTE, "listener.https.route[0]"), (POOL, "pool.web")):
        (found,) = problems((section, f"{section}\nmax_chain_depth = {depth}"))
        assert found.where == f"{where}.max_chain_depth"
        assert found.what == f"must be a whole number from 1 to 10, not {depth}"


@pytest.mark.parametrize("table", ["allow", "deny"])
@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [(kind, text, words) for kind, each in ENTRIES.items() for text, words in each.items()],
)
def test_an_entry_that_cannot_match_is_a_problem(problems, table, kind, text, words):
    written = json.dumps(text, ensure_ascii=False)
    (found,) = problems((ROUTE, f'pool = "web"\n{table} = {{{kind} = [{written}]}}'))
    assert found.where == f"listener.https.route[0].{table}.{kind}[0]"
    assert words in f"{found.what}; {found.remedy}"
    assert str(found).isprintable()


SAME = {
    "cn": ("alice", "Alice"),
    "san_dns": ("A.corp", "a.corp"),
    "san_uri": ("spiffe://corp/*", "spiffe://corp/*"),
    "ip": ("10.0.0.1", "10.0.0.1/32"),
    "email": ("alice@example.com", "alice@EXAMPLE.com"),
    "ou": ("ops", "ops"),
    "issuer": ("CN=a,O=b", "cn=A, o=B"),
    "serial": ("0A:0B", "a0b"),
    "fingerprint_sha256": ("AB" * 32, ":".join(["ab"] * 32)),
}


@pytest.mark.parametrize("kind", SAME)
def test_an_entry_of_allow_that_is_denied_is_a_problem(problems, kind):
    allowed, denied = SAME[kind]
    lists = f'allow = {{{kind} = ["{allowed}"]}}\ndeny = {{{kind} = ["{denied}"]}}'
    (found,) = problems((ROUTE, f'pool = "web"\n{lists}'))
    assert found.where == f"listener.https.route[0].deny.{kind}[0]"
    assert f"is also in allow.{kind}, and deny is judged first" in found.what


def test_a_contradiction_is_not_told_of_a_replaced_list(problems):
    (found,) = problems((ROUTE, 'pool = "web"\nallow = {cn = ["a", 1]}\ndeny = {cn = ["b"]}'))
    assert found.where == "listener.https.route[0].allow.cn[1]"


NOT_SET = [
    (ROUTE, 'pool = "web"\naccept_server_certificates = true\nallow = {san_dns = ["a.example"]}'),
    (
        ROUTE,
        (
            'pool = "web"\nmin_version = "TLSv1.2"\nmax_version = "TLSv1.2"\n'
            "partial_chain = true\nstrict_x509 = true\nmax_chain_depth = 1"
        ),
    ),
    (POOL, '[pool.web]\nmax_version = "TLSv1.3"\npartial_chain = true\nmax_chain_depth = 10'),
    (SNI, '["a_b.example.com", "_a.b", "*._c.example.com", "d_"]'),
    ("192.0.2.2:443", 'w_2.example.com:443"\nname = "_w2.example.com'),
    (ROUTE, 'pool = "web"\nallow = {san_dns = ["a_b.corp"]}'),
    (ROUTE, 'pool = "web"\nallow = {ip = ["10.0.0.0/8", "::1", "2001:db8::/32", "0.0.0.0/0"]}'),
    (ROUTE, 'pool = "web"\nallow = {email = ["*@example.com", "a.b+c@x.example"]}'),
    (ROUTE, 'pool = "web"\nallow = {serial = ["0A:FF", "00", "-05", "0000000a"]}'),
    (ROUTE, 'pool = "web"\ndeny = {issuer = ["CN=A\\\\, B+OU=x,DC=c", "AB:CD", "1.2.3=d"]}'),
    (ROUTE, 'pool = "web"\nallow = {cn = ["a"]}\ndeny = {cn = ["b"], ou = ["a"]}'),
    (POOL, '[pool.web]\nsticky = "none"\nbalance = "hash"\ncookie_insert = false\nsend_proxy = ""'),
    (POOL, '[pool.web]\nsticky = "source"'),
    (POOL, '[pool.web]\nsend_proxy = "v1"'),
    (
        POOL,
        (
            '[pool.web]\nsend_proxy = "v2-inside-tls"\nsend_proxy_tlvs = []\n'
            "send_proxy_certificate = true"
        ),
    ),
    (POOL, '[pool.web]\nsource = ["192.0.2.8", "2001:db8::8"]\nsni = "client"'),
    (POOL, '[pool.web]\nsource = ""\nsni = "site.example.com"'),
    (POOL, "[pool.web]\nhealth = {}"),
    (POOL, '[pool.web]\nhealth = {http_get = "/health?x=%20", http_status = "200, 204,300-399"}'),
    ("192.0.2.2:443", 'w2.example.com:443"\nname = "w2.example.com'),
    (
        POOL,
        (
            '[pool.web]\nsticky = "identity"\nload_factor = 1.25\nsource_prefix_v4 = 24\n'
            "source_prefix_v6 = 64\nslow_start_s = 30"
        ),
    ),
    (POOL, '[pool.web]\nbalance = "least_connections"'),
    (POOL, '[pool.web]\nbalance = "random"'),
    (
        POOL,
        (
            '[pool.web]\nsticky = "cookie"\nbalance = "random"\n'
            'sticky_fallback = "balance"\ncookie = "SID"'
        ),
    ),
    (
        POOL,
        (
            '[pool.web]\nsticky = "cookie"\ncookie_insert = true\ncookie = "R"\n'
            'cookie_secret_file = "a"\ncookie_path = "/app"\ncookie_same_site = ""\n'
            "cookie_secure = false"
        ),
    ),
    ('route = "w1"', 'route = "w1"\nstandby = true\nmax_connections = 9'),
    (ROUTE, 'pool = "web"\nmode = "terminate"\nclient_crl = []'),
    (ROUTE, 'pool = "web"\nclient_crl = ["a.crl", "b.crl"]'),
    (ROUTE, 'pool = "web"\ncrl = {files = ["a.crl"], missing = "accept", expired = "grace"}'),
    (ROUTE, 'pool = "web"\nclient_crl = {files = ["a.crl"]}'),
    (POOL, '[pool.web]\nbackend_crl = ["a.crl"]'),
    (POOL, '[pool.web]\nbackend_crl = {urls = ["http://pki.example.com/a"], hosts = ["b.c"]}'),
    (POOL, '[pool.web]\ncrl = {from_certificates = true, hosts = ["pki.example.com", "::1"]}'),
    ('route = "w1"', 'route = "w1"\nstandby = false\nweight = 256'),
    ('name = "https"', 'name = "https"\naccept_proxy = false'),
    ('access = "-"', 'access = "%Y%m%d.log"\naccess_rotate_s = 3600'),
    ('listen = "127.0.0.1:9180"', 'listen = ""'),
    ("8443", "0"),
]


@pytest.mark.parametrize(("old", "new"), NOT_SET)
def test_written_defaults_and_supported_values_are_accepted(problems, old, new):
    assert problems((old, new)) == ()


def test_tls_settings_of_a_passthrough_route_are_refused(problems):
    found = problems((ROUTE, 'pool = "web"\nmode = "passthrough"\nalpn = ["h2"]'))
    base = "listener.https.route[0]"
    assert [each.where for each in found if each.where.startswith(base)] == [
        f"{base}.{key}" for key in ("alpn", "certificate", "client_ca", "private_key")
    ]


def test_two_free_ports_do_not_collide(problems):
    assert problems(('"[::1]:8443"', '"127.0.0.1:0", "127.0.0.1:0"')) == ()


def test_the_same_name_on_two_listeners_is_no_collision(problems):
    second = (
        '[[listener]]\nname = "more"\nlisten = ["127.0.0.1:9"]\n'
        'route = [{sni = ["app.example.com"], pool = "web", certificate = "a", '
        'private_key = "a", client_ca = "a"}]\n'
        "[pool.web]"
    )
    assert problems((POOL, second)) == ()


def test_a_wildcard_matches_one_label_only(problems):
    assert (
        problems(
            (SNI, '["*.example.com"]'),
            (
                'pool = "rest"',
                'sni = ["example.com", "a.b.example.com", "*.b.example.com"]\npool = "rest"',
            ),
        )
        == ()
    )


def test_a_more_specific_route_may_come_first(problems):
    assert problems(('pool = "rest"', 'sni = ["*.example.com"]\npool = "rest"')) == ()


def test_one_route_may_have_a_name_and_its_wildcard(problems):
    assert problems((SNI, '["*.example.com", "app.example.com"]')) == ()


def test_a_key_of_the_wrong_shape_is_reported_once(problems):
    found = problems(
        (ROUTE, "pool = 5"),
        (SNI, "[7]"),
        ('certificate = "ssl/server.pem"', "certificate = 1"),
        ('client_ca = "ssl/ca.pem"', 'client_cas = "ssl/ca.pem"'),
    )
    base = "listener.https.route[0]"
    assert [each.where for each in found] == [
        f"{base}.sni[0]",
        f"{base}.pool",
        f"{base}.certificate",
        f"{base}.client_cas",
    ]


def test_a_configuration_made_in_code_has_the_same_rules(load):
    config = load()
    assert check_rules(config) == []
    route = (
        config.listener[0]
        .route[0]
        .model_copy(update={"private_key": None, "certificate": Path("a")})
    )
    listener = config.listener[0].model_copy(
        update={"route": (route, *config.listener[0].route[1:])}
    )
    assert [
        each.where for each in check_rules(config.model_copy(update={"listener": (listener,)}))
    ] == ["listener.https.route[0].private_key"]


def test_an_allow_with_one_wrong_entry_is_one_problem(problems):
    (found,) = problems((ROUTE, 'pool = "web"\nallow = {cn = [1]}'))
    assert found.where == "listener.https.route[0].allow.cn[0]"
