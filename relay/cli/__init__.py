"""The command line: turns arguments into calls, and each error into one line."""
