"""relay: a mutual-TLS gateway at layer 4."""

__version__ = "0.1.0"
