"""Tests of sala_sglang.quantization."""
