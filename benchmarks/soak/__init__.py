"""A server under minutes of random load."""
