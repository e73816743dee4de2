"""Load OpenSSL with our settings; must run before anything else in the process imports OpenSSL or cryptography.

Never: overrules an OPENSSL_CONF that the operator has set.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

OPENSSL_CONF = Path(__file__).with_name("openssl.cnf")


def load_openssl() -> bool:
    """Import OpenSSL under our `openssl.cnf`; False when it was loaded before, or the operator's own file is in force."""
    if "cryptography.hazmat.bindings._rust" in sys.modules or "OPENSSL_CONF" in os.environ:
        return False
    os.environ["OPENSSL_CONF"] = str(OPENSSL_CONF)
    try:
        importlib.import_module("OpenSSL.SSL")
    finally:
        # Child processes (an openssl or curl somebody starts) must not inherit it.
        del os.environ["OPENSSL_CONF"]
    return True
