"""What SGLang imports as its external model package: a module for each architecture."""
