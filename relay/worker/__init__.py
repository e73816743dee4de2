"""The worker process: one thread, one epoll loop, many sessions."""
