"""Putting the parts together and keeping them moving. `assembly.py` is the only file that names backends."""
