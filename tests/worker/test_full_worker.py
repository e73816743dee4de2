"""A worker near limits.connections, with clients that never finish a handshake."""

import contextlib
import threading
import time

import pytest

from bench.hellos import make_hello
from bench.strangers import Strangers, StrangersChild
from tests.support.strangers import NAME, knock
from tests.support.worker import wait_until

PATIENT = "[timeouts]\nhello_s = 600\nhandshake_s = 600\n"


def check_service(client, server):
    client.send(b"served?")
    assert server.receive(7) == b"served?"


@pytest.mark.serial
@pytest.mark.parametrize("hello", ["retry", "silent", "whole"])
def test_a_flood_keeps_no_client_out_of_a_nearly_full_worker(start, door, pair, hello):
    """Each stranger once kept its place for 1 s: 40 clients a second were accepted."""
    back = door()
    relay = start([back.address], top=f"{PATIENT}[limits]\nconnections = 100")
    established = [pair(relay, back) for _ in range(60)]
    # A place lasts 130 ms then: that is what a client has for each of its answers.
    with StrangersChild(Strangers("127.0.0.1", relay.port, NAME, hello, 300.0, 60.0)) as crowd:
        crowd.go()
        wait_until(
            lambda: relay.value("relay_sessions_closed_total", "half_open_limit") > 50,
            "places to be given up",
        )
        began_at = time.monotonic()
        for _ in range(10):
            client, server = pair(relay, back)
            check_service(client, server)
            client.close()
            server.close()
        took_s = time.monotonic() - began_at
        crowd.stop()
    assert took_s < 10
    for each in established:
        check_service(*each)


def test_clients_that_drip_keep_no_place_in_a_nearly_full_worker(start, door, pair, stack):
    """A byte now and then once kept every place for as long as the timeouts allow."""
    back = door()
    relay = start([back.address], top=f"{PATIENT}[limits]\nconnections = 10")
    established = [pair(relay, back) for _ in range(6)]
    hello, stop = make_hello(NAME), threading.Event()
    drips = [stack.enter_context(knock(relay.port, hello[:1])) for _ in range(4)]

    def drip():
        for at in range(1, 15):
            for sock in drips:
                with contextlib.suppress(OSError):
                    sock.sendall(hello[at : at + 1])
            if stop.wait(0.5):
                return

    thread = threading.Thread(target=drip)
    thread.start()
    wait_until(lambda: relay.value("relay_connections_active") == 10, "ten connections")
    began_at = time.monotonic()
    check_service(*pair(relay, back))
    took_s = time.monotonic() - began_at
    stop.set()
    thread.join(10)
    assert took_s < 6
    for each in established:
        check_service(*each)
