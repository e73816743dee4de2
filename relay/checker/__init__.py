"""The checker process: health checks of backends, and look-ups of their host names."""
