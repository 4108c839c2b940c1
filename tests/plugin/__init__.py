"""Registration, refusals and hooks."""
