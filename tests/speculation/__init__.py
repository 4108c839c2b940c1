"""Drafts: what is proposed, and when a step verifies it."""
