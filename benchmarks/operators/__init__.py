"""The parts of benchmarks/kernels.py: sizes, inputs, floors, cases, timing, checks and the report."""
