"""The files of revocation lists, and sets in shared memory."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from relay.checker.crl_cache import cached_list
from relay.config.model import Relay
from relay.config.section import Crl
from relay.errors import StartupError
from relay.steps import at_once
from relay.supervisor.list_sets import FETCHED_WATCH_S, all_sets, share_sets, watched
from relay.tls.revocation.revoked_set import build
from tests.support.handshakes import config_of

URL = "http://pki.example.com/a.crl"


def config(pki, watch_s=2.0, **crl):
    route = {"client_ca": pki.ca, "crl": Crl(**crl)}
    return config_of(pki, routes=(route,)).model_copy(update={"relay": Relay(watch_s=watch_s)})


def lists_of(sets):
    return [each.files for each in sets if each.kind == "crl"]


def test_lists_are_watched_with_their_cas(pki):
    one = config(pki, files=(Path("/a.crl"), Path("/b.crl")), urls=(URL,))
    cached = cached_list(one.relay.state_dir, URL)
    assert lists_of(all_sets(one)) == [(pki.ca, Path("/a.crl"), Path("/b.crl"), cached)]
    assert watched(one).sets == all_sets(one)
    assert watched(one).every_s == 2.0


def test_without_a_watch_only_fetched_lists_are_watched(pki):
    none = watched(config(pki, watch_s=0, files=(Path("/a.crl"),)))
    assert (none.sets, none.every_s) == ((), 0)
    some = watched(config(pki, watch_s=0, urls=(URL,)))
    assert [each.kind for each in some.sets] == ["crl"]
    assert some.every_s == FETCHED_WATCH_S


def test_sets_are_shared_one_by_one():
    buffers = {"a": build([]), "b": build([])}
    assert len(list(share_sets(buffers))) == 2
    assert at_once(share_sets(buffers)).keys() == buffers.keys()


def test_too_few_descriptors_for_a_set_are_a_reason():
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(each.name) for each in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 3, limit[1]))
    try:
        with pytest.raises(StartupError, match="no memory for the revoked certificates: Too many"):
            at_once(share_sets({str(number): build([]) for number in range(used + 9)}))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
