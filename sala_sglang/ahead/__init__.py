"""Kernels of a server compiled before it starts, on any machine: ``sala-sglang warm``."""
