"""When new clients should go elsewhere."""

import pytest

from relay.core.readiness import why_not_ready


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (("serving", 2, [0.5, 60.0], ""), ""),
        (("starting", 2, [], ""), "the relay is starting"),
        (("leaving", 2, [0.5], ""), "the relay will drain soon"),
        (("draining", 2, [0.5], ""), "the relay is draining"),
        (("serving", 2, [], ""), "none of 2 workers is serving"),
        (("serving", 3, [11.0, 12.0], ""), "none of 2 serving workers has sent a heartbeat for 11"),
        (("serving", 2, [0.5], "it has expired"), "every route is disabled: it has expired"),
    ],
)
def test_why_a_relay_is_not_ready(facts, why):
    said = why_not_ready(*facts)
    assert said.startswith(why)
    assert bool(said) == bool(why)
