"""``sala-sglang compare``: whether one server answers as another, by what both say of the tokens of the same texts.

``logprobs`` asks the servers, ``blocks`` runs the plain model on both checkpoints, ``checks`` holds what was found
against ``bounds``.
"""
