"""The supervisor process: sockets, workers, signals, reload."""
