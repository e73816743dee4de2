"""The verdicts about directives that become no key, or whose key is always the same.

docs/migration-from-httpd.md has the same verdicts; a test compares.

Never: decides about a directive whose arguments matter (their modules do).
"""

from __future__ import annotations

from collections.abc import Iterator

from relay.importer.report import Verdict

_SAME, _BETTER, _HAND, _LOST = Verdict.SAME, Verdict.BETTER, Verdict.BY_HAND, Verdict.LOST
_BACKENDS = "do it in the backends"
_OCSP = "relay asks nobody while a client waits; use revocation lists: crl"
_STAPLING = "an option of the job that fetches ocsp_response"
_WHO = "relay adds no header; send_proxy tells backends who the client is"
_ONLY_GOOD = "only a valid, good response is stapled, between its dates"
_TLS = (
    "sslprotocol sslciphersuite sslcertificate sslcacert sslcarevocation sslverifydepth"
    " sslopensslconfcmd sslproxymachine sslproxyca sslproxyprotocol sslproxyciphersuite"
    " sslproxyverify"
)
_FILES = (
    "document alias scriptalias directory options allowoverride files index fancyindex addicon"
    " adddescription addalt defaulticon readme header accessfile userdir redirect errordocument"
    " imap cgi"
)
_PROCESSES = "startservers thread minspare maxspare maxconnections maxrequests async listencores"
_CONTENT = (
    "add set default force remove mime type language charset mcache cache deflate brotli expires"
    " filter substitute sed ext sec ratelimit qs_ dav lua php wsgi fcgid script suexec h2 http"
    " cookie session usertrack xbit htcp macro input output action speling anonymous dbd chroot"
    " protocol"
)
_REST = (
    "enable file core server user group buffered log dump watchdog status heartbeat accept send"
    " receive max keep content use regex flush merge strict graceful exec global transfer include"
    " seerequest browser custom listen"
)

_TABLE: dict[str, tuple[Verdict, str]] = {
    "sslengine": (_SAME, "always on"),
    "sslverifyclient": (_SAME, "always on, and cannot be turned off"),
    "sslproxyengine": (_SAME, "always on"),
    "sslproxycheckpeername": (_SAME, "always on, by subjectAltName; a CN does not count"),
    "sslproxycheckpeercn": (_SAME, "always on, by subjectAltName; a CN does not count"),
    "sslproxycheckpeerexpire": (_SAME, "always on"),
    "sslhonorcipherorder": (_SAME, "always on"),
    "sslcompression": (_SAME, "always off"),
    "sslinsecurerenegotiation": (_SAME, "always off"),
    "sslrandomseed": (_SAME, "nothing to set: the kernel seeds OpenSSL"),
    "sslcryptodevice": (_HAND, "OPENSSL_CONF can load providers; see docs/operation.md"),
    "sslfips": (_HAND, "OPENSSL_CONF can load providers; see docs/operation.md"),
    "sslrequiressl": (_SAME, "always so"),
    "sslsessioncache": (_BETTER, "tickets work across all workers without a shared cache"),
    "sslsessioncachetimeout": (_BETTER, "tickets end with the client's certificate"),
    "sslsessiontickets": (_BETTER, "tickets work across all workers"),
    "sslsessionticketkeyfile": (_LOST, "tickets of one relay are not valid at another one"),
    "sslstrictsnivhostcheck": (_SAME, "leave out the route without sni"),
    "sslrenegbuffersize": (_LOST, "there is no renegotiation"),
    "ssloptions": (_LOST, _WHO),
    "sslusername": (_LOST, _WHO),
    "sslusestapling": (_HAND, "ocsp_response, and a job of yours that fetches it"),
    "ssladnrequestfile": (_HAND, "send_ca_names"),
    "sslcadnrequestfile": (_HAND, "relay sends the names of client_ca, or none: send_ca_names"),
    "sslcadnrequestpath": (_HAND, "relay sends the names of client_ca, or none: send_ca_names"),
    "sslpassphrasedialog": (_HAND, "key_passphrase_file; no terminal is asked, no program is run"),
    "mdomain": (_HAND, "an ACME client of your own; what it renews is used without a reload"),
    "servername": (_BETTER, "sni; a name that no route has is refused before any key is used"),
    "serveralias": (_BETTER, "sni; a name that no route has is refused before any key is used"),
    "namevirtualhost": (_SAME, "nothing to set: routes are found by name"),
    "virtualhost": (_SAME, "a [[listener.route]]"),
    "usecanonicalname": (_LOST, "relay makes no URLs"),
    "proxypreservehost": (
        _LOST,
        "the Host header arrives as the client sent it; nothing is rewritten",
    ),
    "proxypassreverse": (_LOST, "nothing is rewritten"),
    "proxypassreversecookiedomain": (_LOST, "nothing is rewritten"),
    "proxypassreversecookiepath": (_LOST, "nothing is rewritten"),
    "proxypassinterpolateenv": (_LOST, "nothing is rewritten"),
    "proxyaddheaders": (_LOST, _WHO),
    "proxyvia": (_LOST, _WHO),
    "proxyrequests": (_SAME, "relay is never a forward proxy"),
    "proxyerroroverride": (_LOST, "relay has no error pages"),
    "proxybadheader": (_LOST, _BACKENDS),
    "proxyiobuffersize": (_SAME, "nothing to set"),
    "proxyreceivebuffersize": (_SAME, "nothing to set"),
    "proxywebsocketasync": (_SAME, "an upgraded connection is bytes like any other"),
    "proxyhcexpr": (_HAND, "http_status; the body is not looked at"),
    "proxyhctemplate": (_HAND, "[pool.NAME.health]"),
    "proxyset": (_SAME, "keys of the pool"),
    "balancergrowth": (_SAME, "new backends come by a reload"),
    "balancerpersist": (_SAME, "changes by hand survive a restart"),
    "balancerinherit": (_SAME, "each pool is there once"),
    "rewriteengine": (_LOST, "nothing is rewritten"),
    "rewritecond": (_LOST, "nothing is rewritten"),
    "rewriterule": (_LOST, "nothing is rewritten"),
    "header": (_LOST, _BACKENDS),
    "requestheader": (_LOST, _WHO),
    "remoteipheader": (_HAND, "accept_proxy for PROXY headers; HTTP headers are not read"),
    "remoteipproxyprotocol": (_HAND, "accept_proxy = { from = [BALANCERS] } of the listener"),
    "remoteipproxyprotocolexceptions": (_HAND, "leave these networks out of accept_proxy.from"),
    "browsermatch": (_BETTER, "every client may close without close_notify"),
    "browsermatchnocase": (_BETTER, "every client may close without close_notify"),
    "setenvif": (_LOST, "relay sees no requests"),
    "timeout": (_SAME, "idle_s of [timeouts]"),
    "keepalive": (_LOST, "client and backend decide how long a connection lives"),
    "keepalivetimeout": (_SAME, "idle_s of [timeouts]"),
    "maxkeepaliverequests": (_LOST, "client and backend decide how long a connection lives"),
    "maxrequestworkers": (_BETTER, "connections of [limits]; an idle one costs about 50 KiB"),
    "maxclients": (_BETTER, "connections of [limits]; an idle one costs about 50 KiB"),
    "serverlimit": (_BETTER, "workers; one per CPU is enough"),
    "qs_srvmaxconnperip": (_HAND, "per_client of [limits], counted per worker"),
    "protocols": (_HAND, "alpn; the backends must speak what the client chose"),
    "protocolshonororder": (_SAME, "relay's order counts"),
    "errorlog": (_SAME, "stderr; text on a terminal, otherwise JSON lines"),
    "errorlogformat": (_LOST, "text on a terminal, otherwise JSON lines"),
    "logformat": (_HAND, "access_format, if the access log uses it; see docs/logs.md"),
    "scoreboardfile": (_BETTER, "/metrics for Prometheus, relay status"),
    "extendedstatus": (_BETTER, "/metrics for Prometheus, relay status"),
    "pidfile": (_SAME, "state_dir has the control socket and endpoints.json"),
    "defaultruntimedir": (_SAME, "state_dir"),
    "mutex": (_SAME, "nothing to set"),
    "hostnamelookups": (_SAME, "addresses are logged, never looked up"),
    "serveradmin": (_LOST, "relay has no error pages"),
    "servertokens": (_SAME, "relay adds no header"),
    "serversignature": (_SAME, "relay adds no header"),
    "traceenable": (_LOST, _BACKENDS),
    "listenbacklog": (_SAME, "nothing to set: the kernel's net.core.somaxconn counts"),
    "loadmodule": (_LOST, "relay has no modules"),
    "order": (_LOST, "relay does not judge the client's address; use a firewall"),
    "satisfy": (_LOST, "relay judges certificates only"),
    "sslcacertificatefile": (_SAME, "client_ca"),
    "sslcertificatefile": (_SAME, "certificate"),
    "sslcertificatekeyfile": (_SAME, "private_key"),
}
# By the beginnings of their names; the first that fits counts. A directive that is
# nowhere here is not httpd's, or very rare.
_GROUPS = [
    (_LOST, _OCSP, "sslocsp"),
    (_LOST, _ONLY_GOOD, "sslstaplingresponse sslstaplingreturn sslstaplingfake"),
    (_LOST, _STAPLING, "sslstapling"),
    (_HAND, "no route has it; another line of its virtual host counts", _TLS),
    (_HAND, "an ACME client of your own", "md"),
    (_LOST, "relay serves no files or pages", _FILES),
    (_LOST, "relay does not judge the client's address; use a firewall", "allow deny"),
    (_LOST, "relay judges certificates only; let the backends ask", "auth require ldap"),
    (_BETTER, "workers; one per CPU is enough", _PROCESSES),
    (_LOST, "relay sees no requests", "if else location limit proxymatch setenv unsetenv passenv"),
    (_LOST, "nothing is rewritten", "rewrite"),
    (_LOST, "it has no effect on connections", "proxy balancer"),
    (_LOST, _BACKENDS, _CONTENT),
    (_LOST, "relay has nothing like it, and needs none", _REST),
]


def verdict_about(name: str) -> tuple[Verdict, str]:
    """The verdict about a directive, by its name in lower case."""
    found = _TABLE.get(name)
    if found is not None:
        return found
    for verdict, reason, beginnings in _GROUPS:
        if name.startswith(tuple(beginnings.split())):
            return verdict, reason
    return _HAND, "the importer does not know this directive; is it misspelt?"


def table_verdicts() -> Iterator[tuple[str, Verdict]]:
    """Every directive of the table, for the test that compares it with the page."""
    for name, (verdict, _) in _TABLE.items():
        yield name, verdict
