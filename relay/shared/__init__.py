"""What several processes share: the scoreboard in shared memory, and JSON messages."""
