"""The users that listen on the unix sockets of backends, as a start looks them up."""

import pytest

from relay.config.load import load_config
from relay.supervisor.peer_users import find_peer_users
from tests.support.plain import unix_toml


@pytest.fixture
def found(tmp_path, pki):
    def found(user):
        file = tmp_path / "relay.toml"
        file.write_text(unix_toml(pki, [tmp_path / "a.sock", tmp_path / "b.sock"], user=user))
        return find_peer_users(load_config(file))

    return found


@pytest.mark.parametrize(("user", "uid"), [("root", 0), ("0", 0), ("4242", 4242)])
def test_a_user_is_given_by_name_or_by_number(found, user, uid):
    assert found(user) == ({user: uid}, [])


@pytest.mark.parametrize(
    ("user", "what"),
    [("no-such-user", "has no user"), ("65534", "any container could be the backend")],
)
def test_a_user_that_says_nothing_is_refused(found, user, what):
    _, problems = found(user)
    assert [each.where for each in problems] == [
        f"pool.main.backend[{index}].peer_user" for index in range(2)
    ]
    assert all(what in each.what and each.remedy for each in problems)
