"""relay: a mutual-TLS gateway at layer 4. Start reading at docs/architecture.md."""

__version__ = "0.1.0"
