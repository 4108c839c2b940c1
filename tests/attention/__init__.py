"""Attention backends: plans of a step, and what is compiled when a server starts."""
