"""Retrieval from long contexts, measured through the OpenAI API of any server (after RULER, arXiv 2404.06654)."""
