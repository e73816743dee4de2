"""The scoreboards of all generations.

There is always room, totals only grow, and no cell is trusted.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.errors import RelayError
from relay.shared.counter_totals import LARGEST, runs_of
from relay.shared.entities import (
    BACKEND,
    CHECKED_BACKEND,
    HEALTH,
    HOST,
    KINDS,
    RELAY,
    ROUTE,
    SLOT,
    SLOT_CPU_US,
    Series,
)
from relay.shared.scoreboard import SPARE_ROWS
from relay.shared.sealed_memory import (
    F_SEAL_FUTURE_WRITE,
    SealedFile,
    SealedMemory,
    map_for_reading,
    read_all,
)
from relay.shared.snapshot import VIEW
from relay.shared.view_channel import ViewReader
from tests.support.scoreboard import close_scoreboards, open_scoreboards

INT64 = st.integers(-(2**63), 2**63 - 1)
CONNECTIONS = "relay_connections_total"
ROUTED = Series(CONNECTIONS, ("https", "default"))
# The limit is 50 ms on an idle machine; tests share their processors.
TURN_S = 0.25


def entities(*backends, hosts=(), checked=False):
    members = [("main", name) for name in backends]
    return {
        RELAY.name: [()],
        ROUTE.name: [("https", "default")],
        BACKEND.name: members,
        CHECKED_BACKEND.name: members if checked else [],
        HOST.name: [(host,) for host in hosts],
    }


@pytest.fixture
def scoreboards():
    return open_scoreboards()


def count(scoreboard, row, name, *labels, by=1):
    scoreboard.row(row)[scoreboard.layout.cell(name, *labels)] += by


def elected(scoreboards, name):
    return scoreboards.snapshot().values.get(
        Series("relay_backend_selected_total", ("main", name, "balanced"))
    )


def open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def mappings():
    return Path("/proc/self/maps").read_text().splitlines()


# Totals.


def test_a_counter_survives_its_worker_and_its_generation(scoreboards):
    seen = []
    for number in range(1, 30):
        scoreboard = scoreboards.begin(number, entities(f"b{number}", "b0"), 1)
        scoreboards.publish({"generation": number})
        row = scoreboards.lease(scoreboard, 0)
        for _ in range(3):
            count(scoreboard, row, CONNECTIONS, "https", "default")
            count(scoreboard, row, "relay_backend_selected_total", "main", f"b{number}", "balanced")
            seen.append(scoreboards.snapshot().values[ROUTED])
        scoreboards.fold(scoreboard, row, 0, 7)
        seen.append(scoreboards.snapshot().values[ROUTED])
        scoreboards.retire({number + 1})
        seen.append(scoreboards.snapshot().values[ROUTED])
    assert seen == sorted(seen)
    assert seen[-1] == 3 * 29
    assert {elected(scoreboards, f"b{number}") for number in range(1, 30)} == {3}
    assert scoreboards.snapshot().values[Series(SLOT_CPU_US, ("0",))] == 7 * 29


def test_a_gauge_ends_with_its_worker(
    scoreboards,
):
    """Its name goes with the last generation that has it."""
    gauge = Series("relay_backend_connections_active", ("main", "b1"))
    scoreboard = scoreboards.begin(1, entities("b1"), 1)
    row = scoreboards.lease(scoreboard, 0)
    count(scoreboard, row, "relay_backend_connections_active", "main", "b1", by=5)
    assert scoreboards.snapshot().values[gauge] == 5
    scoreboards.begin(2, entities("b2"), 1)
    scoreboards.publish({"generation": 2})
    assert scoreboards.snapshot().values[gauge] == 5, "its worker drains"
    scoreboards.fold(scoreboard, row)
    assert scoreboards.snapshot().values[gauge] == 0
    scoreboards.retire({2})
    assert gauge not in scoreboards.snapshot().values


def test_names_keep_their_totals_in_any_order_of_return(scoreboards):
    for number, names in enumerate(
        [("a", "b", "c"), ("c", "a"), ("d", "b"), ("b", "d", "a", "c")], 1
    ):
        scoreboard = scoreboards.begin(number, entities(*names), 1)
        rows = [scoreboards.lease(scoreboard, slot) for slot in range(2)]
        scoreboards.publish({"generation": number})
        for row in rows:
            for name in names:
                count(
                    scoreboard,
                    row,
                    "relay_backend_selected_total",
                    "main",
                    name,
                    "balanced",
                    by=ord(name),
                )
        scoreboards.fold(scoreboard, rows[0])
        times = {
            name: 2
            * sum(
                name in each
                for each in [("a", "b", "c"), ("c", "a"), ("d", "b"), ("b", "d", "a", "c")][:number]
            )
            for name in "abc"
        }
        assert {name: elected(scoreboards, name) for name in "abc"} == {
            name: ord(name) * n for name, n in times.items()
        }


@given(st.lists(st.text("abc", max_size=2), unique=True), st.randoms())
def test_runs_say_where_each_thing_is_in_the_totals(keys, random):
    shuffled = list(keys)
    random.shuffle(shuffled)
    numbers = {key: number for number, key in enumerate(shuffled)}
    found = {}
    for run in runs_of(keys, numbers):
        found.update((keys[run.number + i], run.total + i) for i in range(run.length))
    assert found == numbers


@settings(max_examples=60, deadline=None)
@given(
    st.lists(INT64, min_size=1, max_size=8),
    st.lists(st.sampled_from([0, -1, 2**63 - 1, -(2**63), 2**62]), max_size=4),
)
def test_no_value_in_a_row_lowers_a_total_or_stops_anything(values, more):
    scoreboards = open_scoreboards()
    scoreboards.begin(1, entities("a"), 1)
    before = {}
    for value in values + more:
        scoreboard = scoreboards.generation(1)
        row = scoreboards.lease(scoreboard, 0)
        cells = scoreboard.row(row)
        for cell in range(len(cells)):
            cells[cell] = value
        snapshot = scoreboards.snapshot()
        assert all(
            0 <= worker.slot < 4096 and worker.pid >= 0 and 1 <= worker.phase <= 3
            for worker in snapshot.workers
        )
        scoreboards.fold(scoreboard, row, 0, 1)
        after = {
            series: total
            for series, total in scoreboards.snapshot().values.items()
            if series.name.endswith("_total")
        }
        assert all(after[series] >= total for series, total in before.items())
        assert max(after.values()) <= LARGEST
        before = after
    close_scoreboards()  # those of this example


# Room.


def test_states_move_to_a_larger_memory_with_their_values():
    scoreboards = open_scoreboards(states_cells=64)
    scoreboard = scoreboards.begin(1, entities("a", "b"), 1)
    cell = scoreboard.layout.cell(HEALTH, "main", "b")
    scoreboard.states.cells[cell] = 2
    larger = scoreboards.begin(
        2,
        entities(
            *(f"x{number}" for number in range(500)),
            "b",
            hosts=[f"h{number}" for number in range(50)],
        ),
        1,
    )
    scoreboards.publish({"generation": 2})
    assert larger.states is not scoreboard.states
    assert larger.states.cells[larger.layout.cell(HEALTH, "main", "b")] == 2
    assert scoreboards.snapshot().states[Series(HEALTH, ("main", "b"))] == 2
    assert len(scoreboards.states()) == 2
    scoreboards.retire({2})
    assert scoreboards.states() == [larger.states]


def test_a_free_block_is_used_again_and_starts_at_zero(scoreboards):
    first = None
    for number in range(1, 50):
        scoreboard = scoreboards.begin(
            number, entities(f"b{number}", hosts=[f"h{number}"], checked=True), 1
        )
        cells = [
            scoreboard.layout.cell(HEALTH, "main", f"b{number}"),
            scoreboard.layout.cell("resolved", f"h{number}", "25"),
            scoreboard.layout.cell("backend_not_after_s", "main", f"b{number}"),
        ]
        assert [scoreboard.states.cells[cell] for cell in cells] == [0, 0, 0]
        for cell in cells:
            scoreboard.states.cells[cell] = 7
        scoreboards.publish({"generation": number})
        scoreboards.retire({number})
        first = first or max(cells)
    assert max(cells) <= 3 * first


def test_a_thing_that_two_generations_have_is_one_block_for_both(scoreboards):
    one, two = (
        scoreboards.begin(1, entities("a", "b"), 1),
        scoreboards.begin(2, entities("x", "b"), 1),
    )
    one.states.cells[one.layout.cell(HEALTH, "main", "b")] = 1
    assert two.states.cells[two.layout.cell(HEALTH, "main", "b")] == 1
    assert two.states.cells[two.layout.cell(HEALTH, "main", "x")] == 0


def test_a_row_is_found_however_many_workers_a_generation_has(scoreboards):
    scoreboard = scoreboards.begin(1, entities("a"), 1)
    rows = [scoreboards.lease(scoreboard, 0) for _ in range(5 * (1 + SPARE_ROWS))]
    assert len(set(rows)) == len(rows)
    for row in rows:
        count(scoreboard, row, CONNECTIONS, "https", "default")
    assert scoreboards.snapshot().values[ROUTED] == len(rows)
    for row in rows:
        scoreboards.fold(scoreboard, row)
    assert scoreboards.snapshot().values[ROUTED] == len(rows)
    assert scoreboards.lease(scoreboard, 0) == rows[0]


@pytest.mark.serial
def test_thousands_of_backends_take_less_than_a_turn(scoreboards):
    names = [f"b{number}" for number in range(5000)]
    scoreboard = scoreboards.begin(1, entities(*names, checked=True), 8)
    row = scoreboards.lease(scoreboard, 0)
    for cell in range(scoreboard.layout.gauges_end, scoreboard.layout.cells):
        scoreboard.row(row)[cell] = 1
    steps = {
        "begin": lambda: scoreboards.begin(2, entities(*names, checked=True), 8),
        "publish": lambda: scoreboards.publish({"generation": 2}),
        "fold": lambda: scoreboards.fold(scoreboard, row),
        "retire": lambda: scoreboards.retire({2}),
    }
    for what, step in steps.items():
        began = time.thread_time()  # of this process alone, on a busy machine too
        step()
        assert time.thread_time() - began < TURN_S, what


# Readers.


def reader_of(scoreboards):
    theirs = scoreboards.subscribe()
    return ViewReader(theirs.detach())


def test_a_reader_that_slept_through_many_views_has_the_newest(scoreboards):
    reader = reader_of(scoreboards)
    for number in range(1, 200):
        scoreboards.begin(number, entities(f"b{number}"), 1)
        scoreboards.publish({"generation": number})
        scoreboards.retire({number})
        scoreboards.step()
    descriptors = open_files()
    with pytest.raises(RelayError, match="newest"):
        reader.snapshot(0.05)  # empties the queue, so that the newest view has room
    scoreboards.step()
    snapshot = reader.snapshot()
    assert snapshot.facts["generation"] == 199
    assert Series("relay_backend_selected_total", ("main", "b1", "balanced")) in snapshot.values
    assert open_files() <= descriptors + 6, "views that were never used are let go"
    reader._socket.close()
    scoreboards.step()
    scoreboards.publish({"generation": 199})
    scoreboards.close_reader()


def test_a_reader_waits_for_an_announced_view(scoreboards):
    """Without it, the error says so."""
    reader = reader_of(scoreboards)
    scoreboards.begin(1, entities("a"), 1)
    scoreboards.publish({"generation": 1})
    assert reader.snapshot().facts == {"generation": 1}
    scoreboards._head.cells[VIEW] += 1
    with pytest.raises(RelayError, match="has not sent its newest view"):
        reader.snapshot(0.05)
    reader._socket.close()
    scoreboards.close_reader()


@pytest.mark.parametrize(
    "catalogue",
    [
        b"",
        b"\n",
        b"{}\n{}",
        b"[1]\n[2]\n",
        b'{"view": 1, "facts": {}, "segments": [1]}\n{}\n{"number": 1}',
        b"\xff\n\xff",
        b"[" * 100_000 + b"\n{}",
    ],
)
def test_a_broken_catalogue_is_an_error_in_words(scoreboards, catalogue):
    scoreboards.begin(1, entities("a"), 1)
    scoreboards.publish({"generation": 1})
    scoreboards._catalogue, scoreboards._view = SealedFile("relay-catalogue", catalogue), None
    with pytest.raises(RelayError, match="catalogue of counters cannot be read"):
        scoreboards.snapshot()


def test_a_catalogue_may_be_of_any_size(scoreboards):
    scoreboards.begin(1, entities(*(f"b{number}" for number in range(20_000))), 1)
    scoreboards.publish({"generation": 1, "words": "x" * 5_000_000})
    snapshot = scoreboards.snapshot()
    assert len(snapshot.facts["words"]) == 5_000_000
    assert snapshot.values[Series("relay_backend_connections_active", ("main", "b19999"))] == 0


# Memory.


def test_memory_is_sealed_and_its_descriptor_only_reads():
    memory = SealedMemory("relay-test", 1024)
    seals = fcntl.fcntl(memory.fd, fcntl.F_GET_SEALS)
    assert seals & fcntl.F_SEAL_SHRINK
    assert seals & fcntl.F_SEAL_GROW
    assert seals & F_SEAL_FUTURE_WRITE
    assert fcntl.fcntl(memory.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    read = map_for_reading(memory.fd)
    memory.cells[7] = 9
    assert read[7] == 9
    with pytest.raises(TypeError):
        read[7] = 1
    again = os.open(f"/proc/self/fd/{memory.fd}", os.O_RDWR)
    with pytest.raises(PermissionError):
        os.pwrite(again, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(again, 0)
    os.close(again)
    memory.close()


def test_memory_of_an_ended_generation_is_given_back(scoreboards):
    def held():
        return sum("memfd:relay-generation" in line for line in mappings())

    before = held()
    for number in range(1, 40):
        scoreboard = scoreboards.begin(number, entities("a"), 2)
        scoreboards.publish({"generation": number})
        scoreboards.fold(scoreboard, scoreboards.lease(scoreboard, 0))
        scoreboards.retire({number})
    assert held() <= before + 1


def test_a_child_has_only_the_memory_of_its_generation(scoreboards):
    one, two = scoreboards.begin(1, entities("a"), 1), scoreboards.begin(2, entities("a"), 1)
    scoreboards.publish({"generation": 2})
    count(one, scoreboards.lease(one, 0), "relay_backend_connections_active", "main", "a", by=4)
    row = scoreboards.lease(two, 0)
    read_fd, write_fd = os.pipe()
    scoreboards.share_with(two)
    pid = os.fork()
    if pid == 0:
        try:
            scoreboards.enter(two)
            scoreboards.close_files()
            scoreboards.count("relay_worker_restarts_total")  # has no effect in a child
            count(two, row, "relay_backend_connections_active", "main", "a", by=3)
            busy = sum(map(sum, two.columns("relay_backend_connections_active", "main", "a")))
            maps = [line for line in mappings() if "memfd:relay" in line]
            writable = sorted(
                line.split("memfd:")[1].split()[0]
                for line in maps
                if line.split()[1].startswith("rw")
            )
            os.write(write_fd, f"{busy} {' '.join(writable)}".encode())
        finally:
            os._exit(0)
    os.close(write_fd)
    os.waitpid(pid, 0)
    # Scoreboards of other tests are in this process's memory too. This test's are
    # the ones that the child changed.
    with os.fdopen(read_fd) as pipe:
        busy, *writable = pipe.read().split()
    assert busy == "7", "its own and the other generation's"
    assert writable.count("relay-generation-2") >= 1
    scoreboards.share_with(one)
    scoreboards.share_with(two)
    assert (
        scoreboards.snapshot().values[Series("relay_backend_connections_active", ("main", "a"))]
        == 7
    )


def test_every_kind_has_its_series_in_one_place():
    found = [
        (kind.key, one)
        for kind in KINDS.values()
        for one in (*kind.gauges, *kind.counters, *kind.states)
    ]
    assert len(found) == len(set(found))
    assert {
        kind.name for kind in (RELAY, ROUTE, BACKEND, CHECKED_BACKEND, HOST, SLOT)
    } <= KINDS.keys()
    assert read_all(SealedFile("relay-test", b"x" * 100).fd) == b"x" * 100
