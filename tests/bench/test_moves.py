"""Which clients move when a machine or a backend changes."""

from bench.moves import agree, backend_changes, keys_of, machine_goes, resilient, threshold


def test_machines_agree_in_whatever_order_their_backends_are():
    keys = keys_of(1000, 50)
    assert agree(20, 5, keys) == 50


def test_only_the_clients_move_that_must():
    """The ideal is a share of all; 3,000 clients differ from it by chance."""
    counts = {count.change: count for count in backend_changes(10, 3000, keys_of(3000, 3000))}
    assert len(counts) == 4
    for count in counts.values():
        assert abs(count.moved - count.ideal) < 0.25 * count.ideal + 20
    assert counts["1 fail"].moved == counts["1 are drained"].moved


def test_a_resilient_group_moves_only_the_clients_of_the_machine():
    few = machine_goes("", resilient, 4, 4000)
    assert abs(few.moved - few.ideal) < 200
    assert machine_goes("", threshold, 4, 4000).moved > 1.5 * few.moved
