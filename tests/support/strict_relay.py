"""The relay, started with --strict: for `Gateway(body, module=STRICT)`."""

from __future__ import annotations

import sys

from relay.cli.main import main

STRICT = ("tests.support.strict_relay",)

if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(main([*arguments, "--strict"] if arguments[0] == "start" else arguments))
