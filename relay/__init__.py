"""relay: a mutual-TLS gateway at layer 4.

THE MAP. One connection, in the order in which it meets the code:

1. `relay.worker.listener.Acceptor.on_ready` accepts it, within the limits that `relay.worker.admission.Admission` keeps, and makes a
   `relay.worker.session.Session`, which lives until its log line is written. What may happen to it in which state, and what then, is
   `relay.core.lifecycle.TRANSITIONS`; `relay.worker.session.Session.advance` does it, called by `relay.worker.loop.Loop.run`.
2. `relay.worker.intake.step` looks at its first bytes without consuming them: `relay.core.hello.parse_hello` finds the server name
   (`relay.core.familiar.FamiliarHellos` remembers what it has said),
   `relay.core.routes.RouteTable.find` the route, which has its own TLS context (`relay.tls.contexts.InboundRoute`).
3. `relay.worker.inbound.step` does the handshake that `relay.tls.stream.accept` began; afterwards, full or resumed,
   `relay.tls.identity.judge` says whether this client may come in.
4. Where its cookie decides, `relay.worker.sniffing.begin` reads its first request for `relay.core.sniff.Sniffer.feed`.
   `relay.worker.outbound.choose` asks the pool (`relay.worker.pools.PoolState.pick`) for a backend: `relay.core.sticky.source_key` is
   who the client is, `relay.core.balance.Rendezvous` or `relay.core.balance.RoundRobin` decides.
5. `relay.worker.outbound.step` connects and handshakes, as `relay.tls.stream.connect` began, and goes to the next backend when that fails.
6. `relay.worker.session.Session.on_inbound` and `relay.worker.session.Session.on_outbound` move the bytes, with `relay.tls.pump.Pump.go_on` where it is
   more than one short record; `relay.worker.relaying.event` does what is not usual, until both ends have ended.
7. What `relay.worker.report.record_of` finds in it becomes a line of `relay.observe.access_log.AccessLog`; the counters were kept in
   `relay.observe.scoreboard.Scoreboard` all the way, where `relay.observe.metrics.RelayCollector` reads them.

Around it: `relay.supervisor.prepare.prepare` has the configuration read (`relay.config.load.load_config`) and every TLS context of it
made (`relay.tls.contexts.build_generation`) before the first fork, `relay.core.fleet.plan` decides which workers there should be, and
`relay.worker.main.run_worker` is one of them.
"""

__version__ = "0.1.0"

# Every module, in the order a connection meets them, the processes around it last.
MAP = {
    "relay.worker.main": "a worker from fork to exit",
    "relay.worker.worker": "its sessions, counters and limits",
    "relay.worker.admission": "how many, and which client goes for a newer one",
    "relay.worker.listener": "accepting",
    "relay.worker.loop": "readiness, deadlines, fairness",
    "relay.worker.session": "one connection from accept to log line",
    "relay.core.lifecycle": "its states, and what leads from one to the other",
    "relay.worker.intake": "peeks at the first bytes",
    "relay.core.hello": "ClientHello: server name, ALPN, versions",
    "relay.core.familiar": "hellos like one that was read before",
    "relay.core.routes": "server name to route",
    "relay.worker.inbound": "the handshake with the client",
    "relay.tls.stream": "one TLS connection: begin, handshake, end",
    "relay.tls.identity": "who the peer is, and whether it may come in",
    "relay.tls.patterns": "its names against the patterns of allow",
    "relay.tls.parsed": "the parts of a certificate that OpenSSL has parsed",
    "relay.tls.der": "reads the outside of a certificate",
    "relay.tls.names": "names, dates and serial numbers of certificates",
    "relay.core.untrusted": "text that a peer chose, clipped and escaped",
    "relay.worker.outbound": "the way to a backend",
    "relay.worker.pools": "what a worker knows of its backends",
    "relay.worker.places": "which of a backend's addresses",
    "relay.core.sticky": "who the client is, for stickiness",
    "relay.worker.sniffing": "the client's first bytes, where a cookie decides",
    "relay.core.sniff": "the first request's cookie",
    "relay.worker.choice": "the backend that a cookie chooses",
    "relay.core.cookie": "what a cookie's value names, and our own cookie",
    "relay.core.member": "who may be picked",
    "relay.core.overrides": "what operators have changed about backends",
    "relay.core.balance": "which backend",
    "relay.core.health": "up or down, from the checks' results",
    "relay.tls.pump": "the hot path: bytes from one side to the other",
    "relay.worker.relaying": "ends, resets, and sinks that take no more",
    "relay.worker.parting": "a refused client's socket, until it has read why",
    "relay.worker.usage": "what a worker has used",
    "relay.worker.report": "a session as the access log has it",
    "relay.worker.drain": "letting the sessions finish",
    "relay.tls.reasons": "OpenSSL's words to ours",
    "relay.tls.raw": "the OpenSSL calls made directly",
    "relay.tls.preload": "loads OpenSSL with our settings",
    "relay.errors": "every way to fail",
    "relay.observe.access_format": "a session as a line",
    "relay.observe.access_log": "where lines go",
    "relay.observe.sink": "a destination that is never waited for",
    "relay.observe.scoreboard": "the counters all processes share",
    "relay.observe.names": "the catalogue of metrics",
    "relay.observe.metrics": "the scoreboard for Prometheus",
    "relay.observe.admin": "the admin process",
    "relay.observe.balancer_manager": "the page for operators",
    "relay.observe.gate": "who may see it, and who may change something",
    "relay.observe.guesses": "how many passwords may be tried",
    "relay.observe.link": "its line to the supervisor",
    "relay.observe.shown": "numbers and times for people",
    "relay.observe.pools": "pools and backends as operators see them",
    "relay.observe.password": "the password of the page for operators",
    "relay.observe.messages": "the relay's own messages",
    "relay.checker.main": "the checker from fork to exit",
    "relay.checker.watch": "one backend: when it is checked, and what is thought of it",
    "relay.checker.plan": "what a check is to do, and what came of it",
    "relay.checker.probes": "one check: connect, handshake, GET",
    "relay.checker.http": "the GET",
    "relay.checker.names": "looks host names up",
    "relay.checker.report": "what it knows, as a file for the page",
    "relay.observe.addresses": "where host names lead, from the checker to the workers",
    "relay.config.statuses": "the syntax of HTTP statuses",
    "relay.supervisor.checker": "keeps the checker running",
    "relay.config.model": "every key and its default",
    "relay.config.files": "files that are read without waiting",
    "relay.config.load": "TOML to model",
    "relay.config.rules": "rules across keys",
    "relay.config.health": "rules of health checks",
    "relay.config.login": "rules of [admin]",
    "relay.config.stickiness": "rules of stickiness and balancing",
    "relay.config.words": "what is wrong with a key, in an operator's words",
    "relay.config.places": "where in the file something is",
    "relay.config.address": "the syntax of names and addresses",
    "relay.tls.material": "keys, chains, CAs from files",
    "relay.tls.pem_blocks": "the blocks of a PEM file",
    "relay.tls.certificate": "one certificate of a file",
    "relay.tls.keys": "private keys from files",
    "relay.tls.profile": "what a certificate says about itself",
    "relay.tls.verdict": "what OpenSSL thinks of a certificate",
    "relay.tls.fitness": "whether each is fit for its task",
    "relay.tls.authorities": "whether each CA is",
    "relay.tls.findings": "what is said of a certificate",
    "relay.tls.secrets": "the secret of our own cookies",
    "relay.tls.alpn": "the protocol agreed on with a client",
    "relay.tls.ciphers": "which ciphers are refused, and which warned about",
    "relay.tls.offers": "what OpenSSL would offer with them",
    "relay.tls.contexts": "every TLS context of a generation",
    "relay.tls.pki": "certificates for the demonstration and the tests",
    "relay.confinement": "what the processes are kept from",
    "relay.sockets": "listening sockets and connects",
    "relay.core.fleet": "which workers there should be",
    "relay.core.respawn": "how long a slot waits for its next worker",
    "relay.supervisor.main": "the supervisor's loop",
    "relay.supervisor.fleet": "carries its plan out",
    "relay.supervisor.prepare": "from a file to a generation that can be forked",
    "relay.supervisor.crew": "the living workers",
    "relay.supervisor.process": "fork and exec",
    "relay.supervisor.slots": "which slot listens where",
    "relay.supervisor.slot_memory": "what is remembered of each slot",
    "relay.supervisor.privileges": "who the workers run as",
    "relay.supervisor.reload": "the next generation",
    "relay.supervisor.admin": "keeps the admin process running",
    "relay.supervisor.channel": "the admin process's line to the supervisor",
    "relay.supervisor.overrides": "operators' overrides: kept, carried out, undone",
    "relay.supervisor.state": "its directory: lock and endpoints.json",
    "relay.supervisor.signals": "signals as bytes",
    "relay.supervisor.control": "the control socket",
    "relay.supervisor.systemd": "sd_notify",
    "relay.demo": "the demonstration",
    "relay.demo_stage": "its relay, its files and its clients",
    "relay.demo_backend": "its backends",
    "relay.cli": "the commands",
    "relay.cli_backend": "relay backend",
    "relay.cli_ask": "asks the running relay",
    "relay.__main__": "python -m relay",
}
