from __future__ import annotations

import pytest

from bench import wire


@pytest.mark.parametrize("size", [64, 4096])
def test_a_response_has_the_size_asked_for_and_its_head_says_so(size):
    response = wire.render_response(size)
    head = wire.parse_head(response)
    assert len(response) == size
    assert head is not None
    assert head.length == size - head.body_at
    assert response[head.body_at :] == wire.pattern_at(0, head.length)


def test_a_request_has_64_bytes_and_every_prefix_is_incomplete():
    request = wire.render_request("/r/64")
    assert len(request) == 64
    assert all(wire.parse_head(request[:end]) is None for end in range(64))
    assert wire.parse_head(request).start == "GET /r/64 HTTP/1.1"


def test_the_pattern_shows_every_shift_of_a_lost_record():
    here = wire.pattern_at(0, 64)
    assert all(wire.pattern_at(records * 16_384, 64) != here for records in range(1, 200))


def test_a_chunked_answer_and_an_endless_head_are_refused():
    with pytest.raises(ValueError, match="chunked"):
        wire.parse_head(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    with pytest.raises(ValueError, match="too long"):
        wire.parse_head(b"x" * (wire.MAX_HEAD_BYTES + 1))
