"""Tests in the shape of the packages; ``serving/`` starts whole servers, ``parallel/`` groups of ranks."""
