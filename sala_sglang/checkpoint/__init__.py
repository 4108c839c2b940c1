"""Checkpoints in the released format: their tensors by name and shape, made with random weights, and verified."""
