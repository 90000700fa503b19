"""How each vendor is reached. One file per vendor; its errors are mapped there, once."""
