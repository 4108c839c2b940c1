"""What several benchmarks share: files of results, requests to an engine, memory and kernels of a GPU."""
