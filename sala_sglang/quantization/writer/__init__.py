"""``sala-sglang quantize``: a checkpoint of 16 bits becomes one of FP8 or 4-bit integers, as compressed-tensors has it.

``recipes`` says which layer gets which scheme, ``encode`` rounds weights and ``hessian`` rounds them by what their
inputs are, ``passes`` goes through the model layer by layer, ``output`` writes files, and ``card`` what was done.
"""
