"""Rise in one thread, on a clock and dice of its own: the same seed, the same run."""
