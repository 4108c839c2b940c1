"""Operators: every implementation against its reference, and the references against brute force."""
