"""Places people talk. The promises: `port.py`; one file per channel."""
