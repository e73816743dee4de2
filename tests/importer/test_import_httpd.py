"""What single directives become, and what the report says about them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from relay.importer.verdicts import table_verdicts

ROOT = Path(__file__).resolve().parents[2]
TLS = """
    SSLEngine on
    SSLCertificateFile @PKI@/gateway.pem
    SSLCertificateKeyFile @PKI@/gateway.key
    SSLCACertificateFile @PKI@/ca.pem
    SSLVerifyClient require
    SSLProxyMachineCertificateFile @PKI@/machine-pair.pem
    SSLProxyCACertificateFile @PKI@/ca.pem
    SSLProxyVerify require
"""


def host(*lines, address="*:443", tls=TLS):
    body = "\n".join(lines)
    if "ProxyPass" not in body:
        body += "\nProxyPass / https://127.0.0.1:9443/"
    return f"<VirtualHost {address}>{tls}{body}\n</VirtualHost>\n"


# Directives, then keys of the route, or of the pool, with their values.
ROUTE = [
    ("SSLProtocol all -SSLv3", {"min_version": "TLSv1.2", "max_version": "TLSv1.3"}),
    ("SSLProtocol -SSLv2 -SSLv3", {"min_version": "TLSv1.2", "max_version": "TLSv1.3"}),
    ("SSLProtocol TLSv1.2", {"min_version": "TLSv1.2", "max_version": "TLSv1.2"}),
    ("SSLProtocol -all +TLSv1.3", {"min_version": "TLSv1.3"}),
    ("SSLProtocol TLSv1", {"min_version": "TLSv1.2", "max_version": "TLSv1.3"}),
    ("SSLVerifyDepth 4", {"max_chain_depth": 4}),
    ("SSLVerifyDepth 0", {"max_chain_depth": 1}),
    ("SSLVerifyDepth 99", {"max_chain_depth": 10}),
    ("", {"max_chain_depth": 1}),
    ("SSLSessionTickets off", {"session_tickets": False}),
    ("SSLOpenSSLConfCmd Curves X25519:prime256v1", {"groups": "X25519:P-256"}),
    (
        "SSLCipherSuite ECDHE-RSA-AES256-GCM-SHA384:AES128-SHA",
        {"ciphers_tls12": "ECDHE-RSA-AES256-GCM-SHA384"},
    ),
    (
        "SSLProtocol TLSv1.3\nSSLCipherSuite ECDHE-RSA-AES256-GCM-SHA384",
        {"min_version": "TLSv1.3"},
    ),
    ("SSLStrictSNIVHostCheck on\nServerName app.example.com", {"sni": ("app.example.com",)}),
    ("ServerName app.example.com", {"sni": ()}),
]
POOL = [
    ("lbmethod=bybusyness", {"balance": "least_connections"}),
    ("lbmethod=bytraffic", {"balance": "round_robin"}),
    ("stickysession=SID", {"sticky": "cookie", "cookie": "SID", "sticky_fallback": "balance"}),
    ("stickysession=S|s stickysessionsep=:", {"cookie_in_url": "s", "cookie_separator": ":"}),
    ("stickysession=S stickysessionsep=Off", {"cookie_separator": ""}),
    ('stickysession="SID"', {"cookie": "SID"}),
    ("timeout=2min", {"idle_s": 120}),
    ("nofailover=On maxattempts=3 nonsense=4", {"sticky": "none"}),
]


@pytest.mark.parametrize(("lines", "keys"), ROUTE)
def test_a_directive_becomes_a_key_of_the_route(imported, lines, keys):
    route = imported(host(lines)).route
    assert {key: getattr(route, key) for key in keys} == keys


@pytest.mark.parametrize(("parameters", "keys"), POOL)
def test_a_parameter_becomes_a_key_of_the_pool(imported, parameters, keys):
    text = "<Proxy balancer://b>\nBalancerMember https://127.0.0.1:9443\n</Proxy>\n"
    pool = imported(host(text, f"ProxyPass / balancer://b/ {parameters}")).pool
    assert {key: getattr(pool, key) for key in keys} == keys


def test_members_have_weight_standby_limit_and_a_route_of_their_own(imported):
    result = imported("members")
    rows = [(b.route, b.weight, b.standby, b.max_connections) for b in result.pool.backend]
    assert rows == [
        ("w1", 15, False, 200),
        ("w2", 30, False, 0),
        ("w3", 10, True, 0),
        ("worker4", 10, False, 0),
        ("worker5", 10, False, 0),
    ]
    assert "redirect: lost" in result.verdict("BalancerMember https://127.0.0.2")
    assert result.config.timeouts.connect_s == 0.5
    assert result.config.timeouts.idle_s == 120
    assert {backend.name for backend in result.pool.backend} == {"app.example.com"}


def test_the_first_virtual_host_is_the_default_and_the_last_route(imported):
    (listener,) = imported("many-hosts").config.listener
    assert [route.sni for route in listener.route] == [
        ("a.example.com", "*.a.example.com", "www.a-example.com"),
        ("b.example.com",),
        (),
    ]
    assert listener.route[0].pool == listener.route[2].pool == "shared"


def test_a_later_wildcard_takes_no_name_of_the_first_virtual_host(imported):
    first = host("ServerName a.example.com", f"<Location />\n{CN_IS_A}\n</Location>")
    result = imported(first + host("ServerName b.example.com", "ServerAlias *.example.com"))
    routes = result.config.listener[0].route
    assert [each.sni for each in routes] == [
        ("a.example.com",),
        ("b.example.com", "*.example.com"),
        (),
    ]
    assert [bool(given(each.allow)) for each in routes] == [True, False, True]
    assert "the route without sni" in result.verdict("ServerName a.example.com")


def test_rules_about_files_are_no_notes(imported):
    files = (
        '<Directory />\nRequire all denied\n</Directory>\n<Files ".ht*">\nDeny from all\n</Files>'
    )
    granted = "<Location /x>\nRequire all granted\n</Location>"
    assert "does not judge" not in imported(host(files, granted)).toml


def test_of_a_directory_only_hashed_lists_are_named(imported, tmp_path, files):
    directory = tmp_path / "lists"
    directory.mkdir()
    for name in ("0a1b2c3d.r0", "0a1b2c3d.r1", "source.crl"):
        (directory / name).write_bytes((files / "lists.crl").read_bytes())
    result = imported(host(f"SSLCARevocationPath {directory}", "SSLCARevocationCheck chain"))
    assert [Path(each).name for each in result.route.client_crl] == ["0a1b2c3d.r0", "0a1b2c3d.r1"]


def test_each_address_has_the_virtual_hosts_that_httpd_has_there(imported):
    result = imported("addresses", ports=False)
    listen = {each.name: each.listen for each in result.config.listener}
    assert listen == {
        "https": ("127.0.0.1:443", "[::1]:443"),
        "https-8443": ("127.0.0.2:8443",),
    }


def test_an_address_of_another_machine_does_not_stop_the_start(imported):
    result = imported("seed", ports=False)
    assert result.config.listener[0].freebind
    assert "this machine does not have 11.22.33.44:443" in result.out


RULES = [
    ("%{SSL_CLIENT_S_DN_CN} in {'a', 'b'}", {"cn": ("a", "b")}, {}),
    (
        "%{SSL_CLIENT_S_DN_OU} eq 'O' or %{SSL_CLIENT_S_DN_CN} == 'a'",
        {"ou": ("O",), "cn": ("a",)},
        {},
    ),
    ("not (%{SSL_CLIENT_S_DN_CN} eq 'm')", {}, {"cn": ("m",)}),
    (
        "%{SSL_CLIENT_S_DN_CN} ne 'm' and %{SSL_CLIENT_S_DN_OU} eq 'O'",
        {"ou": ("O",)},
        {"cn": ("m",)},
    ),
    (r"%{SSL_CLIENT_SAN_Email_0} =~ /@example\.com$/", {"email": ("*@example.com",)}, {}),
    ("%{SSL_CLIENT_S_DN_CN} =~ m/^(a|b)$/", {"cn": ("a", "b")}, {}),
    ("%{SSL_CLIENT_SAN_DNS_0} eq 'A.example.com'", {"san_dns": ("a.example.com",)}, {}),
    ("%{SSL_CLIENT_M_SERIAL} eq '4A5B'", {"serial": ("4a5b",)}, {}),
    ("%{SSL_CLIENT_I_DN} eq '/O=Example/CN=CA'", {"issuer": ("CN=CA,O=Example",)}, {}),
    ("'URI:spiffe://a/b' in PeerExtList('subjectAltName')", {"san_uri": ("spiffe://a/b",)}, {}),
    ("%{SSL_CLIENT_VERIFY} eq 'SUCCESS' and %{SSL_CIPHER_USEKEYSIZE} >= 128", {}, {}),
]
# relay cannot judge these, so nobody is admitted.
NOBODY = [
    "%{SSL_CLIENT_S_DN_O} eq 'x' and %{SSL_CLIENT_S_DN_CN} eq 'a'",
    "%{SSL_CLIENT_S_DN_OU} eq 'x' and %{SSL_CLIENT_S_DN_CN} eq 'a'",
    "%{SSL_CLIENT_S_DN_CN} =~ m/^a/",
    "%{SSL_CLIENT_S_DN_CN} =~ /^a|b$/",
    "%{SSL_CIPHER} =~ m/^(EXP|NULL)-/",
    "%{TIME_HOUR} < 20 or %{SSL_CLIENT_S_DN_CN} eq 'a'",
    "not (%{SSL_CLIENT_VERIFY} eq 'SUCCESS')",
    "%{SSL_CLIENT_S_DN_CN} eq",
    "((((",
    "%{SSL_CLIENT_S_DN_CN} in {}",
    "%{SSL_CLIENT_S_DN_CN} ne ''",
    "%{REMOTE_ADDR} == '10.0.0.1'",
    "%{SSL_CLIENT_S_DN_CN} eq 'a' || !%{SSL_CLIENT_S_DN_CN} eq 'b'",
    "(" * 200 + "true" + ")" * 200,
]


def given(lists):
    return {kind: value for kind in type(lists).model_fields if (value := getattr(lists, kind))}


@pytest.mark.parametrize(("rule", "allow", "deny"), RULES)
@pytest.mark.parametrize("directive", ["SSLRequire", "Require expr"])
def test_a_rule_becomes_allow_and_deny(imported, directive, rule, allow, deny):
    result = imported(host(f"<Location />\n{directive} {rule}\n</Location>"))
    assert (given(result.route.allow), given(result.route.deny)) == (allow, deny)
    assert ": same: " in result.verdict(directive)


@pytest.mark.parametrize("rule", NOBODY)
def test_a_rule_that_relay_cannot_judge_admits_nobody(imported, rule):
    result = imported(host(f"<Location />\nSSLRequire {rule}\n</Location>"))
    assert result.route.allow.cn == ("BY HAND: write who is allowed",)
    assert "nobody is admitted until" in result.verdict("SSLRequire")


MIXED = [
    "<RequireAny>\nRequire ip 10.0.0.0/8\nRequire expr %{SSL_CLIENT_S_DN_CN} == 'a'\n</RequireAny>",
    "Require ip 10.0.0.0/8\nRequire expr %{SSL_CLIENT_S_DN_CN} == 'a'",
    (
        "<RequireAny>\n<RequireAll>\nRequire ip ::1\nRequire expr %{SSL_CLIENT_S_DN_CN} == 'b'\n"
        "</RequireAll>\nRequire expr %{SSL_CLIENT_S_DN_CN} == 'a'\n</RequireAny>"
    ),
    "Require all denied",
    "SSLOptions +FakeBasicAuth\nRequire valid-user",
    "SSLRequire %{SSL_CLIENT_S_DN_CN} eq 'a'\nRequire expr %{SSL_CLIENT_S_DN_OU} == 'b'",
]


@pytest.mark.parametrize("lines", MIXED)
def test_rules_that_would_become_wider_admit_nobody(imported, lines):
    result = imported(host(f"<Location />\n{lines}\n</Location>"))
    assert result.route.allow.cn == ("BY HAND: write who is allowed",)


CN_IS_A = "Require expr %{SSL_CLIENT_S_DN_CN} == 'a'"
PASS = "ProxyPass / https://127.0.0.1:9443/"
BALANCER = "<Proxy balancer://x>\nBalancerMember https://127.0.0.1:9443\n</Proxy>"
# Each is a virtual host of its own. In httpd, none of them admits everybody.
CLOSED = [
    "<If \"%{SSL_CLIENT_S_DN_CN} != 'a'\">\nRequire all denied\n</If>",
    "RewriteCond %{SSL:SSL_CLIENT_S_DN_CN} !^a$\nRewriteRule .* - [F]",
    "RewriteCond %{SSL:SSL_CLIENT_S_DN_CN} ^a$\nRewriteRule .* https://127.0.0.1/ProxyPass [P]",
    "SetEnvIfExpr \"%{SSL_CLIENT_S_DN_CN} == 'a'\" OK\n<Proxy *>\nRequire env OK\n</Proxy>",
    "<Location />\n<LimitExcept OPTIONS>\n" + CN_IS_A + "\n</LimitExcept>\n</Location>",
    "<Proxy *>\nOrder deny,allow\nDeny from all\n</Proxy>",
    "SSLUserName SSL_CLIENT_S_DN_CN\n<Location />\nRequire user a\n</Location>",
    "<Location />\nRequire expr 'URI:spiffe://a/*' in PeerExtList('subjectAltName')\n</Location>",
    "<Location />\nRequire expr %{SSL_CLIENT_S_DN_CN} != %{REMOTE_HOST}\n</Location>",
    "<Location />\nRequire expr %{SSL_CLIENT_S_DN_CN} -ne 'a'\n</Location>",
    "<AuthzProviderAlias expr ok true>\n</AuthzProviderAlias>\n<Proxy *>\nRequire ok\n</Proxy>",
    '<LocationMatch "(a*)*(a*)*b">\nRequire all denied\n</LocationMatch>',
    'SecRule SSL_CLIENT_S_DN "!@contains a" "deny"',
]
ONLY_A = [
    f"<Location /app>\n{CN_IS_A}\nProxyPass https://127.0.0.1:9443/app\n</Location>",
    f"<LocationMatch ^/app/>\n{CN_IS_A}\n</LocationMatch>\nProxyPass /app https://127.0.0.1:9443",
    (
        f"<Location /app>\n{CN_IS_A}\n</Location>\n"
        "ProxyPassMatch ^/app/(.*)$ https://127.0.0.1:9443/$1"
    ),
    f"<Location />\n# a comment \\ \n{CN_IS_A}\n</Location>",
    f"<Proxy https://127.0.0.1:9443/*>\n{CN_IS_A}\n</Proxy>",
    f"<Proxy https://127>\n{CN_IS_A}\n</Proxy>",
    f'<ProxyMatch "^https://127">\n{CN_IS_A}\n</ProxyMatch>',
    f"<Proxy balancer://x/>\n{CN_IS_A}\n</Proxy>\n{BALANCER}\nProxyPass / balancer://x/",
]


def test_no_rule_about_certificates_is_lost(imported):
    hosts = [*CLOSED, *ONLY_A]
    text = "".join(host(each, address=f"*:{8000 + at}") for at, each in enumerate(hosts))
    allowed = [each.route[0].allow for each in imported(text).config.listener]
    closed, only_a = allowed[: len(CLOSED)], allowed[len(CLOSED) :]
    assert [each and each.cn for each in closed] == [("BY HAND: write who is allowed",)] * 13
    assert [each and each.cn for each in only_a] == [("a",)] * 8


def test_what_only_httpd_refused_stands_in_the_configuration(imported):
    old = "<Location />\nOrder deny,allow\nDeny from all\nAllow from 10.0.0.0/8\n</Location>"
    rewrite = "RewriteCond %{REMOTE_ADDR} !^10\nRewriteRule ^ - [NC,F]"
    lines = ["SSLOCSPEnable on", "SSLCARevocationFile @PKI@/lists.crl", "Include none.conf"]
    more = host(
        "ServerName c.example\n<Proxy *>\nRequire ssl-verify-client\n</Proxy>",
        CN_IS_A,
        address="b.example:443",
    )
    result = imported(host(*lines, old, rewrite, "Include \x1b[31m.conf") + more)
    toml = result.toml
    assert "\x1b" not in result.out
    for what in (
        "Allow from 10.0.0.0/8 of",
        "RewriteRule ^ - [NC,F] of",
        "SSLOCSPEnable: httpd refused",
        "client_crl is commented out",
        "none.conf was not read",
        "listens on every address",
        "share a backend, but admit different clients",
    ):
        assert what in toml.replace("\n# ", " ")


def test_the_depth_is_httpds_wherever_a_certificate_is_asked_for(imported):
    tls = TLS.replace(
        "SSLVerifyClient require", "<Location />\nSSLVerifyClient require\n</Location>"
    )
    lists = "SSLCARevocationFile @PKI@/lists.crl\nSSLCARevocationCheck leaf"
    result = imported(host(lists, tls=tls) + host(lists, "SSLVerifyDepth 2", address="*:8443"))
    first, second = (each.route[0] for each in result.config.listener)
    assert (first.max_chain_depth, first.client_crl != ()) == (1, True)
    assert second.crl.missing == "accept"
    assert "httpd refused who has no list" in result.out


def test_rules_that_are_not_judged_stand_in_the_configuration(imported):
    result = imported("rules")
    assert result.toml.count("relay does not judge this rule any more") == 2
    assert ": lost: " in result.verdict("Require ip 10.0.0.0/8")


def test_a_client_without_certificate_is_announced_as_refused(imported):
    tls = TLS.replace("SSLVerifyClient require", "SSLVerifyClient optional")
    result = imported(host(tls=tls))
    assert ": lost: " in result.verdict("SSLVerifyClient optional")
    assert "relay refuses clients without a certificate" in result.out


def test_lists_that_httpd_did_not_look_at_are_not_turned_on(imported):
    result = imported(host("SSLCARevocationFile @PKI@/lists.crl"))
    assert result.route.revocation is None
    assert "\n# client_crl = [" in result.toml
    chain = imported(host("SSLCARevocationFile @PKI@/lists.crl", "SSLCARevocationCheck chain"))
    assert [path.name for path in chain.route.client_crl] == ["lists.crl"]


def test_logs_keep_their_format_and_their_rotation(imported, tmp_path):
    result = imported("seed")
    log = result.config.log
    assert log.access_format == '%t %h %{SSL_PROTOCOL}x %{SSL_CIPHER}x "%r" %b'
    own = imported(host('CustomLog "|/usr/bin/rotatelogs -l @DIR@/a_%Y.log 3600" common'))
    if own.config.log.access != "-":  # the user that relay will have may write there
        assert own.config.log.access == str(tmp_path / "a_%Y.log")
        assert own.config.log.access_rotate_s == 3600
    odd = imported(host('CustomLog logs/a.log "%h %U %{x}i %>s %{%d/%b}t"'))
    assert odd.config.log.access_format == "%h - - %s %t"


MISTAKES = [
    ("", 78, "nothing in it has TLS"),
    ("\x00\x01\x02", 78, "nothing in it has TLS"),
    ("<VirtualHost *:443>", 78, "never closed"),
    ("</VirtualHost>", 78, "closes no section"),
    ("Include httpd.conf", 78, "is included in a circle"),
    ("Include [", 78, "no file"),
    ("Use Nothing", 78, "there is no macro"),
    ("<Macro A>\nUse A\n</Macro>\nUse A", 78, "macros use each other"),
    ("<IfVersion ~ (((>\n</IfVersion>", 78, "does not hold"),
    (host("ProxyPass / https://:x/ q"), 78, "no URL"),
    (host("ProxyPass / balancer://none/"), 0, "there is no BalancerMember"),
    (host(address="*:99999"), 0, "no port that can be used"),
    (host(address="www.example.com:443"), 0, "has a name in place of an IP address"),
    (host("SSLProxyEngin on"), 0, "is it misspelt?"),
    (host("ServerName ${NAME}"), 0, "--define NAME=VALUE"),
    (host() + host(), 0, "no client can reach it"),
    (host().replace("</VirtualHost>\n", "") + host(), 0, "is not closed before the next one"),
]


@pytest.mark.parametrize(("text", "code", "said"), MISTAKES)
def test_a_mistake_is_one_line_with_its_place(imported, text, code, said):
    result = imported(text)
    assert result.code == code
    assert said in result.out + result.err
    if "nothing in it" not in said:
        assert re.search(r"httpd\.conf:\d+: .*" + re.escape(said), result.out)


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "cp1252"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_files_of_other_editors_are_read(filled, imported, files, tmp_path, encoding, end):
    text = host("ServerName “app.example.com” # für uns").replace("@PKI@", str(files))
    result = imported(text.replace("\n", end).encode(encoding))
    assert result.code == 0
    assert '# sni = ["app.example.com"]' in result.toml


def test_passwords_are_in_no_report_and_no_comment(imported):
    lines = ["AuthLDAPBindPassword s3cret", 'AuthLDAPBindPassword "s3 cret"']
    text = host(*lines, "ProxyPass / https://u:s3cret@127.0.0.1:9443/ secret=s3cret")
    result = imported(text)
    assert "***" in result.verdict("AuthLDAPBindPassword")
    assert "s3" not in result.out + result.toml
    assert result.pool.backend[0].address == "127.0.0.1:9443"


def test_a_missing_file_is_one_line(tmp_path, capsys):
    from relay.cli.import_httpd import import_httpd

    code = import_httpd.callback(
        (str(tmp_path / "no.conf"),), tmp_path, (), probe=False, force=False
    )
    assert code == 78
    assert capsys.readouterr().err.count("\n") == 1


def test_the_probe_fills_only_verified_names(imported, make_backend, pki):
    good = make_backend(files=pki.backend_wrong_name)
    foreign = make_backend(files=pki.backend_foreign)
    lines = [
        f"BalancerMember https://{each.address} route=r{each.port}" for each in (good, foreign)
    ]
    text = "\n".join(["<Proxy balancer://b>", *lines, "</Proxy>"])
    result = imported(host(text, "ProxyPass / balancer://b/"), probe=True)
    assert [each.name for each in result.pool.backend] == ["other.example.net", ""]
    assert (
        f"probe of {good.address}: CN=backend of CN=Test CA is for other.example.net; verified by"
        in result.out
    )
    assert f"probe of {foreign.address}: CN=backend of CN=Foreign CA" in result.out
    assert "NOT verified by" in result.out


def test_the_probe_says_when_nothing_answers(imported):
    result = imported(host("ProxyPass / https://127.0.0.1:1/"), probe=True)
    assert result.code == 0
    assert "probe of 127.0.0.1:1: no certificate was read" in result.out


def test_the_migration_page_says_the_same():
    page = (ROOT / "docs" / "migration-from-httpd.md").read_text(encoding="utf-8")
    told = {}
    for row in page.splitlines():
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        # Rows about directives as such, not about some arguments of them.
        if re.fullmatch(r"`\w+`(, `\w+`)*", cells[0]) and len(cells) > 2:
            told |= {name.lower(): cells[1] for name in re.findall(r"\w+", cells[0])}
    named = {name: verdict for name, verdict in table_verdicts() if name in told}
    assert len(named) > 25
    assert {name: str(verdict) for name, verdict in named.items()} == {
        name: told[name] for name in named
    }
