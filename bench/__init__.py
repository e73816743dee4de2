"""The benchmark harness: what one unit of work costs a gateway in CPU time and memory, relay beside its peers."""
