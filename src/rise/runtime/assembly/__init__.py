"""From settings to parts: `house.py` has what one process is made of, the others what is built from it."""
