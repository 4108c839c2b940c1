"""Whole servers, asked over HTTP."""
