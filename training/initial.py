"""Weights at the start of training."""

import torch

from sala_sglang.hf import MiniCPMSALAForCausalLM


@torch.no_grad()
def initialise(model: MiniCPMSALAForCausalLM) -> None:
    """Normal weights with variance 1 / inputs; embeddings such that ``scale_emb`` brings them to size 1."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0)
        elif name == "model.embed_tokens.weight":
            parameter.normal_(0, 1 / model.config.scale_emb)
        else:
            parameter.normal_(0, parameter.shape[1] ** -0.5)
