"""Scripts that measure; not installed."""
