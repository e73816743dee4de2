"""What operators see: scoreboard, metrics, access log, admin pages."""
