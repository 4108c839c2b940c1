"""The model in plain PyTorch, compared with formulas written out by hand."""
