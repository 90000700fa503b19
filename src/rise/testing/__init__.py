"""What Rise is tested with, shipped because whoever builds on it needs the same."""
