"""A list that is fetched replaces the last one only if it is good and not older."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import threading
import time
from datetime import timedelta

import pytest

from relay.checker import crl_fetcher
from relay.checker.crl_cache import CrlCache, cached_list
from relay.checker.crl_fetch import Source
from relay.checker.crl_fetcher import CrlFetcher
from relay.checker.crl_verify import verifier
from relay.demo.ca import Authority
from relay.shared.backends_view import HEALTH_FILE
from tests.support.clockwork import Clockwork
from tests.support.crl_server import CrlServer
from tests.support.crls import large_crl, make_crl, to_pem
from tests.support.pki import parsed

ROOT, OTHER = Authority.root("Root"), Authority.root("Other")
NAMESAKE = Authority.root("Root")


class World:
    """A fetcher, its server and its directory.

    `results` are what it counted, `sooner` lets it wait no longer.
    """

    def __init__(self, directory):
        self.state_dir = directory
        self.directory = (directory / HEALTH_FILE).parent
        self.directory.mkdir(exist_ok=True)
        self.server = CrlServer().start()
        self.results = []
        self.clockwork = Clockwork()

    def begin(self, *urls, cas=(ROOT,), hosts=()):
        """What a checker does at its start."""
        self.fd = os.open(self.directory, os.O_PATH | os.O_DIRECTORY)
        self.fetcher = CrlFetcher(
            CrlCache(self.fd),
            chance=lambda: 0.0,
            on_result=lambda *result: self.results.append(result),
        )
        self.urls, self.hosts = urls or [self.server.url()], hosts
        self.trust(*cas)
        self.clockwork = Clockwork()
        self.clockwork.selector.register(self.fetcher.fd, 1, self.fetcher.on_ready)

    def trust(self, *cas):
        """Verify with these CAs from now on."""
        parsed_cas = [parsed(ca.certificate) for ca in cas]
        trusted = frozenset(each.der for each in parsed_cas)
        self.fetcher.use(
            {
                url: Source(url, frozenset(self.hosts), verifier(parsed_cas), trusted)
                for url in self.urls
            }
        )

    def until(self, condition):
        def met():
            self.fetcher.tick()
            return condition()

        self.clockwork.run_until(met)

    def fetch(self):
        """One more fetch of everything, at once. Returns the results."""
        for state in self.fetcher._states.values():
            state.due_at = 0.0
        before = len(self.results)
        self.until(lambda: len(self.results) >= before + len(self.fetcher._states))
        return [result for _, result, *_ in self.results[before:]]

    def kept(self, url=None):
        file = cached_list(self.state_dir, url or self.server.url())
        return file.read_bytes() if file.exists() else None

    def due_in(self):
        [state] = self.fetcher._states.values()
        return state.due_at - time.monotonic()


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.server.stop()


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [
        record.getMessage() for record in caplog.records if record.name.startswith("relay")
    ]


def test_a_list_is_fetched_verified_and_kept(world, said):
    good = make_crl(ROOT, [7], number=17)
    url = world.server.put(good)
    world.begin()
    before = time.time()
    assert world.fetch() == ["ok"]
    assert world.kept() == good
    [(counted, _, at, _)] = world.results
    assert (counted, before <= at <= time.time()) == (url, True)
    [line] = said()
    assert line.startswith(f'{url}: fetched CRL 17 of "CN=Root" of ')
    assert world.due_in() == pytest.approx(86400, abs=5)


def test_an_unchanged_list_is_confirmed_and_its_file_stays(world, said):
    world.server.put(make_crl(ROOT), etag='"1"')
    world.begin()
    assert world.fetch() == ["ok"]
    inode = cached_list(world.state_dir, world.server.url()).stat().st_ino
    assert world.fetch() == ["not_modified"]
    world.server.pages["/ca.crl"].etag = '"2"'
    assert world.fetch() == ["ok"]
    assert world.server.answers == [200, 304, 200]
    assert cached_list(world.state_dir, world.server.url()).stat().st_ino == inode
    assert len(said()) == 1


def test_a_restart_asks_only_for_changes_and_remembers_the_time(world):
    world.server.put(make_crl(ROOT), last_modified="Fri, 27 Nov 2026 12:00:00 GMT")
    world.begin()
    world.fetch()
    world.begin()
    assert world.fetch() == ["not_modified"]
    world.server.stop()
    world.begin()
    assert world.fetch() == ["connect_failed"]
    assert [at for _, _, at, _ in world.results][1] == world.results[2][2] > 0
    assert world.kept() is not None


def test_a_new_list_replaces_the_old_one(world, said):
    world.server.put(make_crl(ROOT, number=1))
    world.begin()
    world.fetch()
    newer = make_crl(ROOT, [7], number=2)
    world.server.put(newer)
    assert world.fetch() == ["ok"]
    assert world.kept() == newer
    assert "fetched CRL 2" in said()[1]


ROOTS_LIST = make_crl(ROOT, number=5, age=timedelta(minutes=30))
BAD = {
    "an HTML page": (b"<!DOCTYPE html><p>Log in</p>", "invalid", "it looks like an HTML page"),
    "nothing": (b"", "invalid", "it is empty"),
    "half a list": (ROOTS_LIST[:-20], "invalid", "that can be read"),
    "another CA": (make_crl(OTHER), "invalid", "belongs to no CA that is trusted here"),
    "a namesake": (make_crl(NAMESAKE), "invalid", "was not signed by this CA"),
    "a wrong signature": (
        make_crl(ROOT, signer=OTHER.key),
        "invalid",
        "its signature does not verify",
    ),
    "a list of the future": (
        make_crl(ROOT, age=timedelta(days=-1)),
        "invalid",
        "was issued in the future",
    ),
    "a lower number": (
        make_crl(ROOT, number=4, age=timedelta(minutes=1)),
        "older",
        "the server has an older list: CRL 4",
    ),
    "genuine, of CAs only": (
        make_crl(ROOT, number=6, age=timedelta(minutes=1), scope={"only_contains_ca_certs": True}),
        "invalid",
        'the server has another list now: CRL 6 of "CN=Root"',
    ),
    "genuine, a shard": (
        make_crl(ROOT, number=6, age=timedelta(minutes=1), scope={"uris": ("http://a/1",)}),
        "invalid",
        "the server has another list now: CRL 6",
    ),
    "genuine, a delta": (
        make_crl(ROOT, number=6, age=timedelta(minutes=1), base=5),
        "invalid",
        "the server has another list now: delta CRL 6",
    ),
    "an earlier date": (
        make_crl(ROOT, number=6, age=timedelta(hours=2)),
        "older",
        "the server has an older list: CRL 6",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_answer_leaves_the_last_good_list(world, said, case):
    body, result, why = BAD[case]
    url = world.server.put(ROOTS_LIST)
    world.begin()
    world.fetch()
    world.server.put(body)
    assert world.fetch() == [result]
    assert world.kept() == ROOTS_LIST
    line = said()[-1]
    assert line.startswith(f"{url}: the revocation list cannot be fetched: ")
    assert why in line
    assert 'the last good one is kept: CRL 5 of "CN=Root" of ' in line
    # A restart does not forget which list was the last.
    world.begin()
    assert world.fetch() == [result]
    assert world.kept() == ROOTS_LIST


AT_FIRST = [case for case in BAD if BAD[case][1] == "invalid" and "genuine" not in case]


def test_a_list_of_another_trusted_ca_does_not_replace_one(world):
    """An attacker on the way could hide all revocations with it."""
    world.server.put(ROOTS_LIST)
    world.begin(cas=(ROOT, OTHER))
    world.fetch()
    world.server.put(make_crl(OTHER))
    assert world.fetch() == ["invalid"]
    assert world.kept() == ROOTS_LIST
    both = to_pem(make_crl(OTHER), make_crl(ROOT, number=6, age=timedelta(minutes=1)))
    world.server.put(both)
    assert world.fetch() == ["ok"]
    assert world.kept() == both


def test_a_ca_may_have_a_new_key(world):
    world.server.put(ROOTS_LIST)
    world.begin(cas=(ROOT, NAMESAKE))
    world.fetch()
    world.server.put(make_crl(NAMESAKE))
    assert world.fetch() == ["ok"]


def test_a_list_may_become_the_shard_of_its_url(world):
    """Some CAs write the URL into every list when they begin to split them."""
    url = world.server.put(ROOTS_LIST)
    world.begin()
    world.fetch()
    for scope, result in (
        ({"uris": (url,), "only_contains_ca_certs": True}, "invalid"),
        ({"uris": (f"{url}2",)}, "invalid"),
        ({"uris": (f"{url}2", url)}, "ok"),
    ):
        world.server.put(make_crl(ROOT, number=6, age=timedelta(minutes=1), scope=scope))
        assert world.fetch() == [result]


def test_one_list_may_replace_a_shard_and_an_expired_one_is_replaced_by_any(world):
    world.server.put(make_crl(ROOT, scope={"uris": ("http://a/1",)}))
    world.begin(cas=(ROOT, OTHER))
    world.fetch()
    world.server.put(make_crl(ROOT, age=timedelta(minutes=40), lasts=timedelta(minutes=10)))
    assert world.fetch() == ["ok"]
    world.server.put(make_crl(OTHER))
    assert world.fetch() == ["ok"]


@pytest.mark.parametrize("case", AT_FIRST)
def test_a_bad_answer_at_first_keeps_nothing(world, said, case):
    world.server.put(BAD[case][0])
    world.begin()
    assert world.fetch() == ["invalid"]
    assert world.kept() is None
    assert "; there is no list of it yet; " in said()[-1]


def test_a_failure_is_logged_once_for_each_reason_and_then_hourly(world, said, monkeypatch):
    world.server.put(status=500)
    world.begin()
    for _ in range(3):
        assert world.fetch() == ["http_failed"]
    world.server.put(status=503)
    world.fetch()
    world.fetch()
    assert [line.partition("; ")[0].rpartition(" ")[2] for line in said()] == ["500", "503"]
    monkeypatch.setattr(crl_fetcher, "REPEAT_S", 0)
    world.fetch()
    assert len(said()) == 3


def test_the_end_of_a_failure_is_logged(world, said):
    url = world.server.put(make_crl(ROOT), etag='"1"')
    world.begin()
    world.fetch()
    world.server.stop()
    world.fetch()
    world.server.start()
    assert world.fetch() == ["not_modified"]
    assert said()[-1].startswith(f'{url}: can be fetched again; it still has CRL 1 of "CN=Root"')


def test_after_a_failure_the_next_try_comes_before_the_end_of_the_list(world):
    world.server.put(status=500)
    world.begin()
    world.fetch()
    assert world.due_in() == pytest.approx(10, abs=2)
    world.server.put(make_crl(ROOT, age=timedelta(0), lasts=timedelta(seconds=30)))
    world.fetch()
    assert world.due_in() == pytest.approx(15, abs=3)
    world.server.put(status=500)
    for _ in range(4):
        world.fetch()
    assert world.due_in() <= 15


def test_a_clock_that_jumps_ahead_makes_it_fetch(world, monkeypatch):
    world.server.put(make_crl(ROOT))
    world.begin()
    world.fetch()
    count = len(world.results)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 2 * 86400)
    world.until(lambda: len(world.results) > count)


def test_a_clock_that_jumps_back_does_not_stop_it(world, monkeypatch):
    world.server.put(make_crl(ROOT))
    world.begin()
    world.fetch()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 100 * 86400)
    monkeypatch.setattr(time, "monotonic", lambda real=time.monotonic: real() + 86401)
    assert not world.fetcher._states[world.server.url()].running_since
    world.fetcher.tick()
    assert world.fetcher._states[world.server.url()].running_since


def test_a_server_that_hangs_delays_no_other_list(world):
    hangs = world.server.put(path="/hangs", hang=True)
    good = world.server.put(make_crl(ROOT))
    world.begin(hangs, good)
    world.until(lambda: [result for url, result, *_ in world.results if url == good] == ["ok"])


def test_a_resolver_that_hangs_counts_as_a_failure_once(world, said, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: release.wait(30) or [])
    monkeypatch.setattr(crl_fetcher, "HANGS_S", 0.1)
    world.begin("http://crl.example.com/")
    world.until(lambda: world.results)
    assert world.results == [("http://crl.example.com/", "timeout", 0.0, "")]
    assert "the resolver hangs" in said()[0]
    release.set()
    world.until(lambda: not world.fetcher._states["http://crl.example.com/"].running_since)
    assert len(world.results) == 1


def test_other_cas_are_used_at_once_and_verify_the_kept_list_again(world):
    world.server.put(make_crl(OTHER), etag='"1"')
    world.begin(cas=[OTHER])
    world.fetch()
    count = len(world.results)
    world.trust(ROOT)
    world.until(lambda: len(world.results) > count)
    assert [result for _, result, *_ in world.results] == ["ok", "invalid"]
    assert world.server.answers == [200, 200], "a 304 would confirm a list of no CA"


def test_a_ca_more_changes_nothing_unless_something_has_failed(world):
    world.server.put(make_crl(ROOT))
    world.begin(cas=[ROOT])
    world.fetch()
    world.trust(ROOT, OTHER)
    assert world.due_in() > 3600
    world.server.put(make_crl(NAMESAKE, number=9))
    world.fetch()
    world.trust(ROOT, OTHER, NAMESAKE)
    world.until(lambda: len(world.results) == 3)
    assert [result for _, result, *_ in world.results] == ["ok", "invalid", "ok"]


def test_cas_that_change_during_a_fetch_lead_to_another(world):
    world.server.put(make_crl(ROOT), portion_s=0.001)
    world.begin(cas=[OTHER])
    world.until(lambda: world.server.requests)
    world.trust(ROOT)
    world.until(lambda: len(world.results) == 2)
    assert [result for _, result, *_ in world.results] == ["invalid", "ok"]


def test_a_url_that_is_no_longer_configured_is_forgotten(world):
    world.server.put(make_crl(ROOT), portion_s=0.001)
    world.begin()
    world.until(lambda: world.server.requests)
    world.fetcher.use({})
    world.server.pages["/ca.crl"].portion_s = 0
    world.until(lambda: world.fetcher._running == 0)
    assert world.results == []


@pytest.mark.parametrize("note", ["", "{", "[]", "null", "[" * 100_000, '{"etag": 5}', "\xff"])
def test_a_corrupt_note_beside_the_list_is_ignored(world, note):
    good = make_crl(ROOT)
    world.server.put(good, etag='"1"')
    world.begin()
    world.fetch()
    file = cached_list(world.state_dir, world.server.url()).with_suffix(".json")
    file.write_text(note, encoding="latin-1")
    world.begin()
    assert world.fetch() == ["ok"]
    assert world.server.answers == [200, 200]
    assert world.kept() == good


def test_a_note_about_another_list_does_not_confirm_this_one(world):
    world.server.put(make_crl(ROOT), etag='"1"')
    world.begin()
    world.fetch()
    file = cached_list(world.state_dir, world.server.url())
    file.write_bytes(make_crl(ROOT, [9]))
    world.begin()
    assert world.fetch() == ["ok"]
    note = json.loads(file.with_suffix(".json").read_text())
    assert note["url"] == world.server.url()


def test_a_kept_list_that_is_damaged_is_replaced(world):
    good = make_crl(ROOT)
    world.server.put(good, etag='"1"')
    world.begin()
    world.fetch()
    cached_list(world.state_dir, world.server.url()).write_bytes(b"damaged")
    world.begin()
    assert world.fetch() == ["ok"]
    assert world.kept() == good


def test_a_kept_list_that_is_deleted_is_fetched_again(world):
    good = make_crl(ROOT, number=2)
    world.server.put(good, etag='"1"')
    world.begin()
    world.fetch()
    cached_list(world.state_dir, world.server.url()).unlink()
    assert world.fetch() == ["ok"]
    assert world.kept() == good
    cached_list(world.state_dir, world.server.url()).unlink()
    world.server.put(make_crl(ROOT, number=1))
    assert world.fetch() == ["older"]


def test_links_in_the_directory_are_not_followed(world, tmp_path):
    good = make_crl(ROOT)
    world.server.put(good)
    file = cached_list(world.state_dir, world.server.url())
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    for name in (file, file.with_suffix(".json"), file.with_suffix(".crl.new")):
        name.symlink_to(target)
    world.begin()
    assert world.fetch() == ["ok"]
    assert world.kept() == good
    assert target.read_bytes() == b"precious"
    assert not file.is_symlink()


def test_a_directory_that_is_gone_is_a_failure_that_says_so(world, said):
    world.server.put(make_crl(ROOT))
    world.begin()
    shutil.rmtree(world.directory)
    assert world.fetch() == ["not_kept"]
    assert "it cannot be kept in relay.state_dir: No such file or directory" in said()[-1]
    assert "check relay.state_dir" in said()[-1]


def test_lists_of_other_urls_are_removed(world):
    urls = [world.server.put(make_crl(ROOT), path=path) for path in ("/a", "/b")]
    world.begin(*urls)
    world.fetch()
    (world.directory / "health.json").write_text("{}")
    CrlCache(world.fd).keep_only(urls[:1])
    assert world.kept(urls[0]) is not None
    assert world.kept(urls[1]) is None
    assert len(list(world.directory.iterdir())) == 3


def test_a_large_list_keeps_the_loop_free(world):
    """While a list of 500,000 entries is read, the loop has its turn."""
    world.server.put(large_crl(ROOT, 500_000, number=1))
    world.begin()
    turns = []

    def met():
        turns.append(time.monotonic())
        return world.results

    world.until(met)
    assert world.results[0][1] == "ok"
    longest = max(later - earlier for earlier, later in itertools.pairwise(turns))
    assert longest < 1.0


def test_threads_are_few_when_servers_answer(world):
    urls = [world.server.put(make_crl(ROOT), path=f"/{number}") for number in range(20)]
    world.begin(*urls)
    world.fetch()
    assert [result for _, result, *_ in world.results] == ["ok"] * 20
    for _ in range(5):
        world.fetch()
    assert world.fetcher._threads <= 20


def test_without_a_thread_the_fetch_waits_until_there_is_one(world, monkeypatch):
    world.server.put(make_crl(ROOT))
    with monkeypatch.context() as none:
        none.setattr(threading.Thread, "start", out_of_threads)
        world.begin()
        world.fetcher.tick()
        world.fetcher.tick()
    world.until(lambda: world.results)
    assert [result for _, result, *_ in world.results] == ["ok"]


def out_of_threads(_thread):
    raise RuntimeError("can't start new thread")


def test_an_operator_can_ask_for_newer_lists(world, monkeypatch):
    world.server.put(make_crl(ROOT))
    world.begin()
    world.fetch()
    world.fetcher.fetch_now()
    assert world.fetcher._running == 0, "it was fetched a moment ago"
    monkeypatch.setattr(crl_fetcher, "MOMENT_S", 0.0)
    world.fetcher.fetch_now()
    world.until(lambda: len(world.results) == 2)
