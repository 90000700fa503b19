"""What became of everything. The promises: `port.py`; one file per backend."""
