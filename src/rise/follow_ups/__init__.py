"""What is promised for later: planned, moved, cancelled, and fired once."""
