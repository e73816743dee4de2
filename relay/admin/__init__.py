"""The admin process: metrics, health endpoints and the balancer-manager page. It holds no keys."""
