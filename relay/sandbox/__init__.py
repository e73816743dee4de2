"""What the processes give up for good: rights to files, and system calls about other processes."""
