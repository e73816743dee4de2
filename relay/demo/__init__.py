"""The demonstration: a relay, its backends and its certificates on loopback."""
