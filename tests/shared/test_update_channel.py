"""Updates from the supervisor to a child."""

import os
import select
from pathlib import Path

from relay.shared.sealed_memory import SealedFile, read_all
from relay.shared.update_channel import MOST_FILES, UpdateReceiver, UpdateSender


def open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def opened():
    sender = UpdateSender()
    return sender, UpdateReceiver(sender.child_end)


def test_updates_arrive_in_order_with_their_files():
    sender, receiver = opened()
    file = SealedFile("another", b"list")
    for number in (1, 2):
        data = SealedFile("update", b"%d" % number * 100_000)
        sender.send(number, data, [file.fd])
        data.close()
    found = receiver.receive()
    assert [(each.number, each.data) for each in found] == [
        (1, b"1" * 100_000),
        (2, b"2" * 100_000),
    ]
    assert [read_all(each.files[0]) for each in found] == [b"list", b"list"]
    for each in found:
        os.close(each.files[0])
    file.close()
    sender.close()
    assert (receiver.receive(), receiver.ended) == ([], True)
    receiver.close()


def test_a_child_that_does_not_read_gets_all_updates_later():
    before = open_files()
    sender, receiver = opened()
    data = SealedFile("update", b"x")
    sent = 0
    while not sender.pending:
        sent += 1
        sender.send(sent, data)
    for number in range(sent + 1, sent + 6):
        sender.send(number, data)
    data.close()
    numbers = []
    while len(numbers) < sent + 5:
        assert select.select([receiver.fd], [], [], 10)[0]
        numbers += [each.number for each in receiver.receive()]
        sender.step()
    assert numbers == list(range(1, sent + 6))
    sender.close()
    receiver.close()
    assert open_files() == before


def test_a_child_that_has_ended_stops_no_update():
    before = open_files()
    sender, receiver = opened()
    receiver.close()
    data = SealedFile("update", b"x")
    for number in range(3):
        sender.send(number, data)
    assert not sender.pending
    data.close()
    sender.close()
    assert open_files() == before


def test_any_number_of_files_comes_with_an_update():
    before = open_files()
    sender, receiver = opened()
    files = [SealedFile("another", b"%d" % number) for number in range(2 * MOST_FILES)]
    data = SealedFile("update", b"x")
    for number in (1, 2):
        sender.send(number, data, [file.fd for file in files])
    found = receiver.receive()
    while len(found) < 2:
        sender.step()
        assert select.select([receiver.fd], [], [], 10)[0]
        found += receiver.receive()
    assert [each.number for each in found] == [1, 2]
    for each in found:
        assert [read_all(fd) for fd in each.files] == [read_all(file.fd) for file in files]
        for fd in each.files:
            os.close(fd)
    for file in (*files, data):
        file.close()
    sender.close()
    receiver.close()
    assert open_files() == before
