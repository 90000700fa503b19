"""What people and code have configured. The promises: `port.py`; one file per backend."""
