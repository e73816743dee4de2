"""One traced connection: each stage's file is entered in its states only."""

import json
import signal
import sys
from itertools import groupby
from pathlib import Path

import pytest

import relay.worker as package
import tests.support.worker as support
from relay.core.lifecycle import State
from relay.worker.main import run_worker

HERE = str(Path(package.__file__).parent) + "/"
STATES = {
    "intake.py": {State.INTAKE},
    "inbound.py": {State.INBOUND_TLS},
    "first_request.py": {State.SNIFF},
    "outbound.py": {State.CONNECT, State.OUTBOUND_TLS},
    "relaying.py": {State.RELAY, State.HALF_CLOSED},
}
# The client's hello, and the start of the connection to the backend. On a quiet machine
# the backend's answer is there by then.
STEPS = 2
MOST_CHANGES = 60
# On a busy machine a flight comes in pieces, and each piece is one step more.
CHANGES_PER_PIECE = 8
APART = {"tick", "Loop._expire"}  # no connection calls these


def record_calls(spec):
    """Run the worker. Returns its exit code, and each call into its files."""
    entries = []
    apart = []  # frames of these calls

    def on_call(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(HERE):
            if code.co_qualname in APART:
                apart.append(frame)
            elif not apart or code.co_qualname == "record_of":  # a tick may write the log
                state = getattr(frame.f_locals.get("session"), "state", None)
                entries.append((code.co_filename.removeprefix(HERE), code.co_qualname, state))
        elif event == "return" and apart and frame is apart[-1]:
            apart.pop()

    sys.setprofile(on_call)
    code = run_worker(spec)
    sys.setprofile(None)
    return code, entries


@pytest.fixture
def trace(monkeypatch, tmp_path, start, door, pair):
    """The calls of a connection with two requests, the worker's second one."""
    file = tmp_path / "calls.json"

    def recording(spec):
        code, entries = record_calls(spec)
        file.write_text(json.dumps(entries))
        return code

    monkeypatch.setattr(support, "run_worker", recording)

    def trace(**settings):
        back = door()
        worker = start([back.address], **settings)
        for number in range(2):
            client, server = pair(worker, back)
            for _ in range(2):
                client.send(b"request")
                assert server.receive(7) == b"request"
                server.send(b"response")
                assert client.receive(8) == b"response"
            client.close()
            assert server.end() == (b"", "close_notify")
            server.close()
            worker.record(number)
        worker.signal(signal.SIGQUIT)
        assert worker.wait() == 0
        calls = json.loads(file.read_text())
        accepted = [at for at, call in enumerate(calls) if call[1] == "Acceptor.on_ready"]
        logged = [at for at, call in enumerate(calls) if call[1] == "record_of"]
        return calls[accepted[-1] : logged[-1] + 1]

    return trace


@pytest.mark.serial
def test_a_connection_changes_file_at_most_sixty_times(trace):
    """Before the transition table drove the stages, it was 75 times."""
    calls = trace()
    files = [file for file, _ in groupby(file for file, _, _ in calls)]
    pieces = sum(name == "DrivenSession.step" for _, name, _ in calls) - STEPS
    assert len(files) - 1 <= MOST_CHANGES + CHANGES_PER_PIECE * max(0, pieces), files


@pytest.mark.parametrize("pool", ["", 'sticky = "cookie"\n'], ids=["plain", "cookie"])
def test_a_stage_is_entered_in_its_states_only(trace, pool):
    calls = trace(pool=pool, top="[timeouts]\nsniff_s = 0.2" if pool else "")
    seen = {file: {state for at, _, state in calls if at == file and state} for file in STATES}
    if not pool:
        assert not seen.pop("first_request.py")
    assert all(seen.values()), seen
    foreign = {file: states - STATES[file] for file, states in seen.items()}
    assert not any(foreign.values()), foreign
