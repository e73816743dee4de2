from __future__ import annotations

import pytest

from relay.checker.backend_check import BackendCheck
from relay.checker.check import check_settings
from relay.config.load import load_config
from relay.tls.contexts import build_generation
from tests.support.clockwork import Clockwork
from tests.support.tables import listener_table, pool_table, route_table


@pytest.fixture
def generation(pki, tmp_path):
    """`generation(addresses, health={…})`: a generation with a pool of these."""

    def build(addresses, *, route=None, **pool):
        file = tmp_path / "relay.toml"
        file.write_text(
            listener_table(route_table(pki, **(route or {}))) + pool_table(pki, addresses, **pool)
        )
        return build_generation(load_config(file), 1)

    return build


@pytest.fixture
def check(generation):
    """Check a backend once, at one or at several endpoints. Returns the result.

    Fails if the check leaves a socket open.
    """

    def run(
        address,
        *,
        endpoints=None,
        first=0,
        route=None,
        pool=None,
        settings=None,
        revoked=None,
        **health,
    ):
        made = generation([address], route=route, health={"timeout_s": 5, **health}, **(pool or {}))
        pool_settings, (target,) = (
            made.config.pool["main"].model_copy(update=settings or {}),
            made.targets["main"],
        )
        target.revoked = revoked
        clockwork, results = Clockwork(), []
        BackendCheck(
            target,
            check_settings(pool_settings, pool_settings.health, made.config, "main"),
            endpoints or ((target.family, target.sockaddr),),
            first,
            selector=clockwork.selector,
            at=clockwork.at,
            on_end=results.append,
        ).begin()
        clockwork.run_until(lambda: results)
        assert not clockwork.selector.get_map()
        assert len(results) == 1
        return results[0]

    return run
