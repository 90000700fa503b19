"""Events, wake-ups, and who is alive. The promises: `port.py`; one file per backend."""
