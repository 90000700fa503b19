"""What connects Rise with the frameworks of others. None of them is needed to run it, and none is imported here."""
