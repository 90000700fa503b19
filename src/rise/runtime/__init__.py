"""Putting the parts together and keeping them moving. `assembly/` alone names backends."""
