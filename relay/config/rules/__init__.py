"""Rules that types cannot express: one file per part of the configuration."""
