"""Rights that processes give up for good: to files, and to other processes."""
