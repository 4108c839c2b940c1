"""A real SGLang server, for tests and benchmarks."""
