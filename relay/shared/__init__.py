"""What several processes share: the scoreboard in shared memory, and the values they tell each other."""
