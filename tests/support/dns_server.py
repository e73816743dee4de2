"""A DNS server on loopback, UDP and TCP, whose answers a test sets and changes.

    with DnsServer() as dns:
        dns.set("_https._tcp.app.test", "SRV", "10 5 8443 a.test", ttl=1)
        dns.set("a.test", "A", "127.0.0.1")
        dns.deny("gone.test")                # NXDOMAIN, as for every unset name
        dns.fail("broken.test")              # SERVFAIL
        dns.ignore("silent.test")            # no answer

It needs port 53, which needs root; `possible` says whether it can have it. Each server
has an address of its own in 127.53.0.0/16. `Etc` makes an /etc whose resolv.conf names
servers, for `tests.support.own_etc`.
"""

from __future__ import annotations

import itertools
import os
import selectors
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Self

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from tests.support.gateway import ROOT, Gateway

OWN_ETC = ("tests.support.own_etc",)
_numbers = itertools.count(os.getpid() % 60_000)


def possible() -> bool:
    """Whether this process may have port 53 and a mount namespace."""
    if os.geteuid() != 0:
        return False
    tried = subprocess.run(
        [sys.executable, "-m", "tests.support.own_etc", "try"],
        capture_output=True,
        timeout=20,
        check=False,
        cwd=ROOT,
    )
    return tried.returncode == 0


class DnsServer:
    """One server; a context manager. `asked` counts questions by name and type."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], Any] = {}
        self.asked: Counter[tuple[str, str, str]] = Counter()
        self.largest_udp = 512
        self.hints = False
        self._lock = threading.Lock()
        self._udp, self._tcp, self.address = self._bind()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _bind(self) -> tuple[socket.socket, socket.socket, str]:
        while True:
            number = next(_numbers) % 65_000 + 1
            address = f"127.53.{number >> 8}.{number & 255}"
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                udp.bind((address, 53))
                tcp = socket.create_server((address, 53))
            except OSError:
                udp.close()
                continue
            return udp, tcp, address

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.close()
        self._thread.join(20)
        for each in (self._udp, self._tcp, self._woken):
            each.close()

    # What it answers.

    def set(self, name: str, kind: str, *data: str, ttl: int = 1) -> None:
        """Answer with these records; with none of this type if there are no data."""
        with self._lock:
            self._records[name, kind] = [(kind, each, ttl) for each in data]

    def deny(self, name: str) -> None:
        """Answer NXDOMAIN."""
        with self._lock:
            for key in [key for key in self._records if key[0] == name]:
                del self._records[key]

    def fail(self, name: str) -> None:
        """Answer SERVFAIL."""
        with self._lock:
            self._records[name, ""] = dns.rcode.SERVFAIL

    def ignore(self, name: str) -> None:
        """Answer nothing."""
        with self._lock:
            self._records[name, ""] = None

    def answer_again(self, name: str) -> None:
        """End `fail` or `ignore`."""
        with self._lock:
            self._records.pop((name, ""), 0)

    # The server.

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            for each in (self._udp, self._tcp, self._woken):
                selector.register(each, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._woken:
                        return
                    if key.fileobj is self._udp:
                        wire, peer = self._udp.recvfrom(4096)
                        answer = self._answer(wire, self.largest_udp)
                        if answer:
                            self._udp.sendto(answer, peer)
                    else:
                        connection, _ = self._tcp.accept()
                        arguments = (connection,)
                        threading.Thread(target=self._over_tcp, args=arguments, daemon=True).start()

    def _over_tcp(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            connection.settimeout(10)
            try:
                size = stream.read(2)
                answer = self._answer(stream.read(struct.unpack(">H", size)[0]), 65_535)
                connection.sendall(struct.pack(">H", len(answer)) + answer)
            except (OSError, struct.error):
                return

    def _answer(self, wire: bytes, most: int) -> bytes:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        with self._lock:
            self.asked[name, kind, "udp" if most < 65_535 else "tcp"] += 1
            special = self._records.get((name, ""), 0)
            if special is None:
                return b""
            if special:
                response.set_rcode(special)
            else:
                self._fill(response, name, kind)
        try:
            return response.to_wire(max_size=most)
        except dns.exception.TooBig:
            short = dns.message.make_response(query)
            short.flags |= dns.flags.TC
            return short.to_wire()

    def _fill(self, response: dns.message.Message, name: str, kind: str) -> None:
        """Add the records of a name, following its aliases."""
        for _ in range(20):
            if not any(each == name for each, _ in self._records):
                response.set_rcode(dns.rcode.NXDOMAIN)
                return
            self._add(response.answer, name, kind)
            alias = self._records.get((name, "CNAME"))
            if not alias or (name, kind) in self._records:
                break
            self._add(response.answer, name, "CNAME")
            name = alias[0][1].rstrip(".")
        if self.hints and kind == "SRV":
            for _, data, _ in self._records.get((name, kind), ()):
                target = data.split()[3].rstrip(".")
                self._add(response.additional, target, "A")
                self._add(response.additional, target, "AAAA")

    def _add(self, section: list[dns.rrset.RRset], name: str, kind: str) -> None:
        records = self._records.get((name, kind), ())
        if records:
            section.append(
                dns.rrset.from_text_list(
                    dns.name.from_text(name),
                    records[0][2],
                    "IN",
                    kind,
                    [data if kind != "SRV" else _absolute(data) for _, data, _ in records],
                )
            )


def _absolute(data: str) -> str:
    return data if data.endswith(".") else f"{data}."


class Etc:
    """An /etc of its own for a relay: `Gateway(body, **etc.gateway)`."""

    def __init__(self, directory: Path, *servers: str) -> None:
        self.directory = directory
        directory.mkdir(mode=0o755)
        for name in ("passwd", "group", "ld.so.cache", "localtime"):
            if Path("/etc", name).exists():
                shutil.copy(Path("/etc", name), directory / name)
        (directory / "nsswitch.conf").write_text("hosts: files dns\n")
        (directory / "hosts").write_text("127.0.0.1 localhost\n")
        self.use(*servers)

    def use(self, *servers: str, more: str = "") -> None:
        """Rewrite resolv.conf in place."""
        lines = [f"nameserver {each}\n" for each in servers]
        text = "".join(lines) + "options timeout:1 attempts:1\n" + more
        (self.directory / "resolv.conf").write_text(text)

    def relay(self, body: str, **sections: dict[str, Any]) -> Gateway:
        """A relay that has this /etc."""
        return Gateway(body, module=OWN_ETC, env={"OWN_ETC": str(self.directory)}, **sections)
