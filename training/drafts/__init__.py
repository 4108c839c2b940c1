"""Trains models that draft tokens for speculative decoding: EAGLE3 heads and small dense models.

``prompts`` makes prompts in sala-tiny's language, ``answers`` lets the served model answer prompts, ``train`` trains on
these answers, and ``evaluate`` counts how many drafts hold. See docs/guides/training_a_draft_model.md.
"""
