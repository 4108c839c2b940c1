"""The benchmarks themselves: what they compute, and that each runs."""
