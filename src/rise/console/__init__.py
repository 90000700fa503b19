"""The console: what the people who run Rise look at all day."""
