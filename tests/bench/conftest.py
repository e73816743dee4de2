"""One set of benchmark certificates for all tests of the harness."""

from __future__ import annotations

import pytest

from bench.pki import create_pki


@pytest.fixture(scope="session")
def bench_pki(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bench-pki")
    # Gateways that drop their privileges read these files as another user.
    for each in (directory, *directory.parents):
        if each.stat().st_uid == 0 and "pytest" in str(each):
            each.chmod(0o755)
    return create_pki(directory)
