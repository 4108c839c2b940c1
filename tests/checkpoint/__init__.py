"""Checkpoints: made, and verified."""
