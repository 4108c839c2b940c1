"""``sala-sglang eval``."""
