"""Reads configurations of other gateways, and writes one of relay with a report."""
