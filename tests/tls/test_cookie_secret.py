"""The secret of a pool that inserts cookies: how it is read, and what is refused."""

import os

import pytest

from relay.config.model import Config
from relay.errors import ConfigError
from relay.tls.cookie_secret import load_secret, load_secrets

SECRET = b"0123456789abcdef"


@pytest.fixture
def file(tmp_path):
    def write(data, mode=0o600):
        made = tmp_path / "cookie.secret"
        made.write_bytes(data)
        made.chmod(mode)
        return made

    return write


def test_white_space_around_the_secret_is_removed(file):
    assert load_secret("here", file(b"\n" + SECRET + b"\r\n")) == SECRET


@pytest.mark.parametrize(
    ("data", "mode", "words"),
    [
        (SECRET[:-1] + b"\n", 0o600, "has 15 bytes; it needs at least 16"),
        (SECRET * 300, 0o600, "more than 4096"),
        (SECRET, 0o644, "every user of this machine can read"),
    ],
    ids=["short", "long", "open to all"],
)
def test_an_unsuitable_secret_is_refused_and_not_shown(file, data, mode, words):
    made = file(data, mode)
    with pytest.raises(ConfigError, match=words) as caught:
        load_secret("pool.web.cookie_secret_file", made)
    (problem,) = caught.value.problems
    assert problem.where == "pool.web.cookie_secret_file"
    assert str(made) in problem.what
    assert problem.remedy
    assert SECRET[:8].decode() not in str(problem)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*none: No such file"):
        load_secret("here", tmp_path / "none")


def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"cannot read .*pipe: it is not a regular file"):
        load_secret("here", tmp_path / "pipe")


def test_only_pools_that_insert_cookies_have_a_secret(file, tmp_path):
    backend = [{"route": "w", "address": "192.0.2.1:1"}]
    pool = {"sticky": "cookie", "cookie": "R", "cookie_insert": True, "backend": backend}
    config = Config.model_validate(
        {
            "listener": [{"name": "https", "listen": ["127.0.0.1:0"], "route": [{"pool": "a"}]}],
            "pool": {
                "a": {**pool, "cookie_secret_file": str(file(SECRET))},
                "b": {**pool, "cookie_secret_file": str(tmp_path / "none")},
                "c": {"backend": backend},
            },
        }
    )
    secrets, problems = load_secrets(config)
    assert secrets == {"a": SECRET}
    assert [problem.where for problem in problems] == ["pool.b.cookie_secret_file"]
