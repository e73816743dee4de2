"""`python -m bench.large` writes configurations that both gateways accept."""

from bench.large import Files
from relay.config.load import load_config
from tests.support.programs import needs, run


@needs("haproxy")
def test_both_gateways_accept_the_large_configuration(tmp_path):
    files = Files(tmp_path, 3)
    config = load_config(files.relay)
    assert (len(config.listener[0].route), len(config.pool)) == (3, 3)
    checked = run("haproxy", "-c", "-f", str(files.haproxy))
    assert checked.returncode == 0, checked.stdout + checked.stderr
