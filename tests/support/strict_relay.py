"""Relay, started with --strict.

`Gateway(body, module=("tests.support.strict_relay",))`.
"""

from __future__ import annotations

import sys

from relay.cli.main import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(main([*arguments, "--strict"] if arguments[0] == "start" else arguments))
