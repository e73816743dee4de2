"""Rules beyond the shape of single keys: a file per part of the configuration."""
