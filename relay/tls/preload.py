"""Loads OpenSSL with the relay's own `openssl.cnf`.

This must run before anything else in the process imports OpenSSL or cryptography.

Never: overrides an OPENSSL_CONF that the operator set.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

# Whether the operator's own openssl.cnf may choose what the relay does not set.
OPERATORS_OWN = "OPENSSL_CONF" in os.environ
OPENSSL_CONF = Path(__file__).with_name("openssl.cnf")


def load_openssl() -> bool:
    """Import OpenSSL with the relay's `openssl.cnf`.

    False if it was loaded before, or if the operator set OPENSSL_CONF.
    """
    if "cryptography.hazmat.bindings._rust" in sys.modules or "OPENSSL_CONF" in os.environ:
        return False
    os.environ["OPENSSL_CONF"] = str(OPENSSL_CONF)
    try:
        importlib.import_module("OpenSSL.SSL")
    finally:
        # Child processes, such as openssl or curl, must not inherit it.
        del os.environ["OPENSSL_CONF"]
    return True
