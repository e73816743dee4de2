"""The admin process: metrics, probes and the balancer manager; it has no keys."""
