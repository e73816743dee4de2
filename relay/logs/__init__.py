"""The access log, and the relay's own messages."""
