"""Open work in lanes. The promises: `port.py`; one file per backend."""
