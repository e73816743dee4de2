"""Rights that processes give up for good: access to files, system calls on other processes."""
