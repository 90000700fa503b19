"""The doors: HTTP in, answers out. Nothing here decides what happens to a message."""
