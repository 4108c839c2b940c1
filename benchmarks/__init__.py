"""Measurements, one folder a subject; ``python -m benchmarks.<folder>.<name>``, results under the same names."""
