"""Arrays in, arrays out: no parameters, no networks, no functions."""
