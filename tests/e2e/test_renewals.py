"""Files that are renewed while the relay serves, as the usual tools write them."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from relay.demo.ca import Authority, LeafSpec
from tests.support.client import PATIENCE_S, context_of, talk
from tests.support.gateway import Gateway, wait_until
from tests.support.operator import Operator
from tests.support.peer import dial
from tests.support.pki import GATEWAY_NAMES, Files, write
from tests.support.stub_relay import STUB, stub
from tests.support.tables import listener_table, pool_table, route_table
from tests.support.traffic import Traffic

NOW = datetime.now(UTC)
FAST = {"workers": 2, "watch_s": 0.1}


def leaf(pki, names=GATEWAY_NAMES, authority=None, **more):
    spec = LeafSpec("gateway", dns=names, purposes=("server",), **more)
    return (authority or pki.authority).issue(spec)


class World(NamedTuple):
    """A relay whose route has these files, in a directory of the test."""

    gateway: Gateway
    files: Files
    ca: Path

    def serial(self, pki):
        raw = socket.create_connection(("127.0.0.1", self.gateway.port()), PATIENCE_S)
        with context_of(pki).wrap_socket(raw, server_hostname="app.example.com") as tls:
            return int(tls.getpeercert()["serialNumber"], 16)

    def wait_for(self, pki, issued):
        """Until new clients see this certificate. No process is replaced."""
        wait_until(
            "new clients see it",
            lambda: self.serial(pki) == issued.certificate.serial_number,
            detail=self.gateway.log,
        )
        assert self.gateway.endpoints["generation"] == 1

    def pending(self):
        """The files that are not in use, with the reasons, from `relay status`."""
        lines = self.gateway.command("status").stdout.splitlines()
        return [line for line in lines if " is not in use since " in line]


@pytest.fixture
def world(start, pki, echo, tmp_path):
    """`world(certificate, key)`: a relay with these files, or with files of its own."""

    def begin(certificate=None, key=None, sni=("app.example.com",), **more):
        if certificate is None:
            files = write(tmp_path, "gateway", leaf(pki))
        else:
            files = Files(certificate, key, None)
        ca = tmp_path / "ca.pem"
        if not ca.exists():
            shutil.copy(pki.ca, ca)
        route = route_table(pki, files=files, client_ca=str(ca), sni=list(sni))
        body = listener_table(route) + pool_table(pki, [echo.address])
        return World(start(body, **{"relay": FAST, **more}), files, ca)

    return begin


# How tools write.


def test_two_links_that_are_switched_one_at_a_time(world, pki, tmp_path):
    """As certbot, dehydrated and lego do."""
    archive, live = tmp_path / "archive", tmp_path / "live"
    archive.mkdir()
    live.mkdir()
    first, second = leaf(pki), leaf(pki)
    for number, issued in ((1, first), (2, second)):
        issued.write(archive / f"fullchain{number}.pem", archive / f"privkey{number}.pem")
    links = live / "fullchain.pem", live / "privkey.pem"
    for link in links:
        link.symlink_to(archive / f"{link.stem}1.pem")
    relay = world(*links)
    assert relay.serial(pki) == first.certificate.serial_number
    for link in links:
        link.unlink()
        link.symlink_to(archive / f"{link.stem}2.pem")
        if link is links[0]:
            relay.gateway.wait_for_log("does not belong to the certificate")
            assert relay.serial(pki) == first.certificate.serial_number
    relay.wait_for(pki, second)
    assert relay.pending() == []


def test_a_kubernetes_secret_volume(world, pki, tmp_path):
    """Its files are links through ..data, which is a link that is renamed."""
    first, second = leaf(pki), leaf(pki)

    def publish(version, issued):
        directory = tmp_path / f"..{version}"
        directory.mkdir()
        issued.write(directory / "tls.crt", directory / "tls.key")
        (tmp_path / "..data_tmp").symlink_to(directory.name)
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")

    publish("2026_11_27", first)
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    relay = world(tmp_path / "tls.crt", tmp_path / "tls.key")
    publish("2026_11_28", second)
    shutil.rmtree(tmp_path / "..2026_11_27")
    relay.wait_for(pki, second)
    assert "does not belong" not in relay.gateway.log()


@pytest.mark.parametrize("order", [("key", "certificate"), ("certificate", "key")])
def test_files_written_one_after_the_other(world, pki, tmp_path, order):
    """As step, spiffe-helper and two templates of a Vault agent do."""
    relay, new = world(), write(tmp_path, "new", leaf(pki))
    old = relay.serial(pki)
    for kind in order:
        source, target = getattr(new, kind), getattr(relay.files, kind)
        target.write_bytes(source.read_bytes())
        if kind == order[0]:
            relay.gateway.wait_for_log("does not belong to the certificate")
            assert relay.serial(pki) == old
    relay.wait_for(pki, new.issued)


def test_one_file_for_both_that_is_overwritten(world, pki, tmp_path):
    """As one template of a Vault agent does."""
    both = tmp_path / "both.pem"

    def publish(issued):
        made = write(tmp_path, "part", issued)
        both.write_bytes(made.certificate.read_bytes() + made.key.read_bytes())

    publish(leaf(pki))
    relay, new = world(both, both), leaf(pki)
    publish(new)
    relay.wait_for(pki, new)


def test_an_overwritten_file_whose_time_is_set_back(world, pki, tmp_path):
    """As cp -p and rsync -t do."""
    relay, new = world(), write(tmp_path, "new", leaf(pki))
    for source, target in ((new.key, relay.files.key), (new.certificate, relay.files.certificate)):
        before = target.stat()
        target.write_bytes(source.read_bytes())
        os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    relay.wait_for(pki, new.issued)


def test_a_file_that_grows_is_not_used_before_it_is_whole(world, pki, tmp_path):
    relay, new = world(), write(tmp_path, "new", leaf(pki))
    old, whole = relay.serial(pki), new.certificate.read_bytes()
    shutil.copy(new.key, relay.files.key)
    for end in (0, 20, len(whole) // 2, len(whole) - 30):
        relay.files.certificate.write_bytes(whole[:end])
        assert relay.serial(pki) == old
    relay.gateway.wait_for_log("what is in use stays in use")
    assert relay.serial(pki) == old
    relay.files.certificate.write_bytes(whole)
    relay.wait_for(pki, new.issued)


def test_a_directory_that_disappears_and_comes_back(world, pki, tmp_path):
    """As a volume that is unmounted: what is in use stays in use."""
    volume = tmp_path / "volume"
    volume.mkdir()
    first, second = write(volume, "gateway", leaf(pki)), leaf(pki)
    relay = world(first.certificate, first.key)
    shutil.rmtree(volume)
    log = relay.gateway.wait_for_log("what is in use stays in use")
    assert f"{first.certificate} does not exist" in log
    assert relay.serial(pki) == first.issued.certificate.serial_number
    assert len(relay.pending()) == 2
    volume.mkdir()
    second.write(first.certificate, first.key)
    relay.wait_for(pki, second)
    assert relay.pending() == []


# What is not used.


def mismatched(pki, relay):
    shutil.copy(pki.client.key, relay.files.key)


def expired(pki, relay):
    past = {"not_before": NOW - timedelta(days=9), "not_after": NOW - timedelta(days=1)}
    leaf(pki, **past).write(relay.files.certificate, relay.files.key)


def not_yet_valid(pki, relay):
    leaf(pki, not_before=NOW + timedelta(days=1)).write(relay.files.certificate, relay.files.key)


def for_clients_only(pki, relay):
    spec = LeafSpec("gateway", dns=GATEWAY_NAMES, purposes=("client",))
    pki.authority.issue(spec).write(relay.files.certificate, relay.files.key)


def without_the_name(pki, relay):
    leaf(pki, names=("other.example.com",)).write(relay.files.certificate, relay.files.key)


def emptied(pki, relay):
    relay.files.certificate.write_bytes(b"")


def nonsense(pki, relay):
    relay.files.certificate.write_text("<html>404</html>")


def without_an_end(pki, relay):
    relay.files.key.write_bytes(relay.files.key.read_bytes()[:-20])


def a_directory(pki, relay):
    relay.files.key.unlink()
    relay.files.key.mkdir()


def a_pipe(pki, relay):
    relay.files.certificate.unlink()
    os.mkfifo(relay.files.certificate)


def gone(pki, relay):
    relay.files.key.unlink()


def a_chain_without_its_intermediate(pki, relay):
    below = pki.authority.intermediate("Another CA")
    leaf(pki, authority=below).write(
        relay.files.certificate, relay.files.key, with_intermediates=False
    )


BAD = {
    mismatched: "does not belong to the certificate",
    expired: "expired on",
    not_yet_valid: "not valid before",
    for_clients_only: "cannot serve as a server",
    without_the_name: "does not carry app.example.com, which the certificate in use carries",
    emptied: "has no PEM certificate in it",
    nonsense: "has no PEM certificate in it",
    without_an_end: "private key",
    a_directory: "is a directory",
    a_pipe: "not a regular file",
    gone: "does not exist",
    a_chain_without_its_intermediate: "the chain in use is complete",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_a_bad_set_keeps_what_is_in_use(world, pki, scrape, spoil):
    """A reload says why; other sets are renewed all the same."""
    relay = world()
    old, kept = relay.serial(pki), relay.files.certificate.read_bytes()
    spoil(pki, relay)
    relay.ca.write_bytes(pki.ca.read_bytes() + pki.foreign_ca.read_bytes())
    done = relay.gateway.command("reload")
    assert done.returncode == 78, done
    assert BAD[spoil] in done.stderr
    assert "these files were refused, what is in use stays in use" in done.stderr
    assert relay.serial(pki) == old
    assert talk(pki, relay.gateway.port(), context=context_of(pki, pki.client_foreign)) == b"hello"
    assert len(relay.pending()) == 2
    seen = scrape(relay.gateway)
    assert seen["relay_config_last_reload_successful"] == 0
    assert seen[f"relay_files_pending{{file={relay.files.certificate}}}"] == 1
    assert seen[f"relay_files_pending{{file={relay.ca}}}"] == 0
    assert seen["relay_config_generation"] == 1
    assert kept  # the relay has not touched it


@pytest.mark.parametrize("content", ["", "not a certificate", "expired", "a key"])
def test_a_bad_ca_file_keeps_the_cas_in_use(world, pki, content):
    """An empty file must neither let everybody in nor keep everybody out."""
    relay = world()
    past = {"not_before": NOW - timedelta(days=9), "not_after": NOW - timedelta(days=1)}
    if content == "expired":
        Authority.root("Old CA", **past).write(relay.ca)
    elif content == "a key":
        shutil.copy(pki.client.key, relay.ca)
    else:
        relay.ca.write_text(content)
    done = relay.gateway.command("reload")
    assert done.returncode == 78, done
    assert str(relay.ca) in done.stderr
    assert talk(pki, relay.gateway.port()) == b"hello"
    with pytest.raises(OSError, match=r"alert|EOF|reset"):
        talk(pki, relay.gateway.port(), context=context_of(pki, pki.client_foreign))


def test_a_worse_certificate_is_used_with_a_warning(world, pki):
    relay = world()
    soon = leaf(pki, names=("app.example.com",), not_after=NOW + timedelta(days=40))
    soon.write(relay.files.certificate, relay.files.key)
    assert relay.gateway.command("reload").returncode == 0
    assert relay.serial(pki) == soon.certificate.serial_number
    assert "has fewer names than before" in relay.gateway.log()
    assert "before the certificate that it replaces" in relay.gateway.log()


def test_a_certificate_that_lives_for_hours_is_no_news(world, pki):
    """Otherwise the log would have a warning every hour."""
    relay = world()
    for hours in (5, 6):
        new = leaf(pki, not_after=NOW + timedelta(hours=hours))
        new.write(relay.files.certificate, relay.files.key)
        assert relay.gateway.command("reload").returncode == 0
        assert relay.serial(pki) == new.certificate.serial_number
    assert "in 0 days" not in relay.gateway.log()
    assert relay.gateway.log().count("before the certificate that it replaces") == 1


def test_a_key_that_no_suite_of_the_route_names_is_not_used(start, pki, echo, tmp_path):
    """As when an ACME client goes over from RSA to ECDSA by itself."""
    files = write(tmp_path, "gateway", leaf(pki, key_type="rsa-2048"))
    route = route_table(pki, files=files, ciphers_tls12="ECDHE-RSA-AES128-GCM-SHA256")
    gateway = start(listener_table(route) + pool_table(pki, [echo.address]), relay=FAST)
    leaf(pki).write(files.certificate, files.key)
    gateway.wait_for_log("has an EC key, and ciphers_tls12 has no suite for it")
    context = context_of(pki)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert talk(pki, gateway.port(), context=context) == b"hello"


def test_an_expired_certificate_is_replaced_by_a_narrower_one(start, pki, echo, tmp_path):
    old = leaf(pki, not_before=NOW - timedelta(days=9), not_after=NOW - timedelta(days=1))
    files = write(tmp_path, "gateway", old)
    route = route_table(pki, files=files, sni=["app.example.com", "www.example.com"])
    gateway = start(listener_table(route) + pool_table(pki, [echo.address]), relay=FAST)
    leaf(pki, names=("app.example.com",)).write(files.certificate, files.key)
    gateway.wait_for_log("does not carry www.example.com")
    gateway.wait_for_log("no longer disabled")
    # The supervisor says so when it has sent the new files to the workers.
    wait_until("a client is served", lambda: is_served(pki, gateway), detail=gateway.log)


def is_served(pki, gateway):
    """Whether a client gets its bytes back."""
    try:
        return talk(pki, gateway.port()) == b"hello"
    except OSError:
        return False


def test_a_default_route_keeps_a_certificate_of_other_names(world, pki):
    relay = world(sni=())
    old = relay.serial(pki)
    leaf(pki, names=("elsewhere.example.org",)).write(relay.files.certificate, relay.files.key)
    done = relay.gateway.command("reload")
    assert done.returncode == 78
    assert "which the certificate in use carries" in done.stderr
    assert relay.serial(pki) == old


def test_each_reason_is_told_once_and_a_lasting_one_loudly(start, pki, echo, tmp_path):
    """The log has one line for each reason, however often the files are looked at."""
    files = write(tmp_path, "gateway", leaf(pki))
    body = listener_table(route_table(pki, files=files)) + pool_table(pki, [echo.address])
    gateway = start(body, module=STUB, env=stub(recheck_s=0.1, loud_s=1), relay=FAST)
    key = files.key.read_bytes()
    files.key.unlink()
    gateway.wait_for_log("does not exist")
    shutil.copy(pki.client.key, files.key)
    gateway.wait_for_log("does not belong to the certificate")
    gateway.wait_for_log(": not in use since ")
    log = gateway.log()
    assert log.count("what is in use stays in use") == 2
    assert log.count(": not in use since ") == 1
    files.key.write_bytes(key)
    gateway.wait_for_log("the files are those in use again")
    assert "renewed in place" not in gateway.log()


# The rest of the relay.


def test_a_reload_without_a_change_says_so(world, pki):
    relay = world()
    files = Path(relay.files.certificate), Path(relay.files.key)
    for file in files:
        os.utime(file)
    done = relay.gateway.command("reload")
    assert done.stdout.startswith("generation 1 goes on: nothing has changed")
    assert "renewed in place" not in relay.gateway.log()


def test_without_the_watcher_only_a_reload_renews(world, pki, tmp_path):
    relay, new = world(relay={"workers": 1, "watch_s": 0}), write(tmp_path, "new", leaf(pki))
    assert relay.gateway.children("relay watcher") == []
    for source, target in ((new.key, relay.files.key), (new.certificate, relay.files.certificate)):
        shutil.copy(source, target)
    done = relay.gateway.command("reload")
    assert f"renewed in place: {relay.files.certificate}\n" in done.stdout
    assert relay.serial(pki) == new.issued.certificate.serial_number


def test_settings_and_files_may_change_together(world, pki, tmp_path):
    relay, new = world(relay={"workers": 1, "watch_s": 0}), write(tmp_path, "new", leaf(pki))
    for source, target in ((new.key, relay.files.key), (new.certificate, relay.files.certificate)):
        shutil.copy(source, target)
    relay.gateway.change_a_setting()
    done = relay.gateway.command("reload")
    assert done.stdout.startswith("generation 2 serves")
    assert relay.serial(pki) == new.issued.certificate.serial_number


def test_another_password_needs_more_than_a_renewal(start, simple, tmp_path):
    """It is in a file too, and a reload must not miss it."""
    file = tmp_path / "password"
    file.write_text("correct horse battery\n")
    file.chmod(0o600)
    gateway = start(simple, admin={"user": "op", "password_file": str(file)}, relay={"workers": 1})
    file.write_text("another horse battery\n")
    assert gateway.command("reload").stdout.startswith("generation 2 serves")


def test_workers_that_start_later_have_the_renewed_files(world, pki, tmp_path):
    relay, new = world(), leaf(pki)
    new.write(relay.files.certificate, relay.files.key)
    relay.wait_for(pki, new)
    before = relay.gateway.workers()
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    relay.gateway.wait_for_workers(
        lambda now: len(now) == 2 and not set(now.values()) & set(before.values())
    )
    for _ in range(6):
        assert relay.serial(pki) == new.certificate.serial_number


def test_health_checks_use_the_renewed_machine_certificate(start, pki, echo, tmp_path):
    machine = write(tmp_path, "machine", pki.machine.issued)
    body = listener_table(route_table(pki)) + pool_table(
        pki, [echo.address], files=machine, health={"interval_s": 0.1}
    )
    gateway = start(body, relay=FAST)
    pki.authority.issue(LeafSpec("renewed", purposes=("client",))).write(
        machine.certificate, machine.key
    )
    gateway.wait_for_log("renewed in place")
    wait_until(
        "a check shows it",
        lambda: "renewed" in str(echo.peers[-1:]),
        detail=lambda: gateway.log() + str(echo.peers[-3:]),
    )
    checker = gateway.child("relay checker")
    assert talk(pki, gateway.port()) == b"hello"
    assert "renewed" in str(echo.peers[-3:])
    assert gateway.child("relay checker").pid == checker.pid


def test_a_watcher_that_hangs_stops_nothing_and_is_replaced(world, pki):
    """As it does when a file system does not answer."""
    relay = world(module=STUB, env=stub(hang_s=1.5))
    watcher = relay.gateway.child("relay watcher")
    watcher.suspend()
    relay.gateway.wait_for_log("the watcher (pid")
    assert talk(pki, relay.gateway.port()) == b"hello"
    assert relay.gateway.command("status").returncode == 0
    wait_until(
        "another watcher runs",
        lambda: [one.pid for one in relay.gateway.children("relay watcher")] != [watcher.pid],
    )
    new = leaf(pki)
    new.write(relay.files.certificate, relay.files.key)
    relay.wait_for(pki, new)


looks_into_processes = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root sees the files of a process that is not dumpable"
)


@looks_into_processes
@pytest.mark.parametrize("spare", [0, 1, 2, 3])
def test_too_few_open_files_delay_a_renewal(world, pki, spare):
    """It is told once, tried again, and is no bug."""
    relay = world(module=STUB, env=stub(recheck_s=0.2))
    gateway, new = relay.gateway, leaf(pki)
    limits = resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)
    files = psutil.Process(gateway.pid).num_fds()
    resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (files + spare, limits[1]))
    new.write(relay.files.certificate, relay.files.key)
    wait_until(
        "it is told, or renewed with the few files",
        lambda: "the relay tries again" in gateway.log() or "renewed in place" in gateway.log(),
        detail=gateway.log,
    )
    resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, limits)
    relay.wait_for(pki, new)
    assert "bug" not in gateway.log()
    assert gateway.log().count("the relay tries again") <= 2


def test_a_certificate_in_the_metrics_follows(world, pki, scrape):
    relay = world()
    ends = NOW.replace(microsecond=0) + timedelta(days=77)
    leaf(pki, not_after=ends).write(relay.files.certificate, relay.files.key)
    assert relay.gateway.command("reload").returncode == 0
    name = "relay_certificate_not_after_timestamp_seconds"
    labels = f"{{file={relay.files.certificate},subject=CN=gateway}}"
    wait_until(
        "the metric follows", lambda: scrape(relay.gateway)[name + labels] == ends.timestamp()
    )
    seen = scrape(relay.gateway)
    assert seen["relay_renewals_total{result=renewed}"] == 1
    assert seen["relay_config_last_reload_successful"] == 1


def test_a_ca_that_is_removed_refuses_its_clients(world, pki):
    """Without a reload, and in a resumption too."""
    relay = world()
    relay.ca.write_bytes(pki.ca.read_bytes() + pki.foreign_ca.read_bytes())
    assert relay.gateway.command("reload").returncode == 0
    context = context_of(pki, pki.client_foreign)

    def visit(session=None):
        raw = socket.create_connection(("127.0.0.1", relay.gateway.port()), PATIENCE_S)
        with context.wrap_socket(raw, server_hostname="app.example.com", session=session) as tls:
            tls.sendall(b"hello")
            assert tls.recv(5) == b"hello"
            return tls.session, tls.session_reused

    session, _ = visit()
    assert visit(session)[1]
    new = leaf(pki)
    new.write(relay.files.certificate, relay.files.key)
    relay.wait_for(pki, new)
    session, resumed = visit(session)
    assert resumed, "the relay's own certificate does not matter for tickets"
    shutil.copy(pki.ca, relay.ca)
    assert relay.gateway.command("reload").returncode == 0
    with pytest.raises(OSError, match=r"alert|EOF|reset"):
        visit(session)


RENEWALS, LONG = 20, 20


@pytest.mark.parametrize("reloads", [False, True])
def test_a_ca_that_is_removed_ends_sessions_while_the_relay_drains(world, pki, reloads):
    relay = world()
    gateway = relay.gateway
    peer = dial(gateway.port(), context_of(pki))
    peer.send(b"hello")
    assert peer.receive(5) == b"hello"
    if reloads:  # another generation starts, and is told to end with the rest
        gateway.change_a_setting()
        gateway.signal(signal.SIGHUP)
        gateway.wait_for_log('"generation": 2')
    gateway.signal(signal.SIGTERM)
    gateway.wait_for_log("to finish")
    shutil.copy(pki.foreign_ca, relay.ca)
    gateway.wait_for_access(reason="not_allowed_during_session")
    gateway.wait_for_log('no longer has \\"CN=Test CA\\": whoever it vouched for is refused')
    assert gateway.wait() == 0
    peer.sock.close()


def test_renewals_under_load_lose_nothing_and_leak_nothing(world, pki):
    """`bench/renewals.py` does the same a thousand times."""
    relay = world(admin={})
    gateway, context = relay.gateway, context_of(pki)
    family = [psutil.Process(pid) for pid in (gateway.pid, *gateway.workers().values())]
    peers = [dial(gateway.port(), context) for _ in range(LONG)]
    files = [0] * len(family)
    with Traffic(pki, gateway.port(), clients=2) as traffic:
        for number in range(RENEWALS):
            new = leaf(pki)
            new.write(relay.files.certificate, relay.files.key)
            relay.wait_for(pki, new)
            for peer in peers:
                peer.send(b"%03d" % number)
                assert peer.receive(3) == b"%03d" % number
            if number == 2:
                files = [process.num_fds() for process in family]
    assert traffic.failures == []
    for process, before in zip(family, files, strict=True):
        wait_until(
            "only the sessions' files are open",
            lambda process=process, before=before: process.num_fds() <= before,
            detail=gateway.log,
        )
    for peer in peers:
        peer.close()
    records = gateway.wait_for_access(LONG + sum(traffic.done))
    # The short sessions end as Python's ssl does it, without a close_notify.
    reasons = {record["reason"] for record in records}
    assert reasons <= {"finished", "truncated", "peer_gone", "inbound_reset"}
    assert Operator(gateway.endpoints["admin"]).pools()["pools"][0]["backends"][0]["busy"] == 0
