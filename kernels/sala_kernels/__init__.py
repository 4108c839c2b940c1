"""Operators of MiniCPM-SALA. They know torch and Triton, and nothing of any serving engine."""
