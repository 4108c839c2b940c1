"""Speculative decoding: what drafts the next tokens, when a step verifies them, and the commit of what was accepted."""
