"""EAGLE3 heads: the trainer computes what SGLang's module does, on the same tokens and states."""

import pytest
import torch
from safetensors.torch import load_file

from sala_sglang.config import SALAConfig
from tests.training.served_head import ServedHead
from training.architecture import CONFIG
from training.drafts.eagle3 import Eagle3Head, head_config

TOKENS, STEPS = 12, 4
BASES = torch.tensor([4, 7])
CONFIGURATION = SALAConfig(**CONFIG)


@pytest.fixture(scope="module", params=[None, 200], ids=["all tokens", "some tokens"])
def head(request, tmp_path_factory):
    """A head of random weights, and the directory that it was saved to."""
    torch.manual_seed(1)
    size = CONFIGURATION.vocab_size
    token_ids = torch.arange(size) if request.param is None else torch.randperm(size)[: request.param].sort().values
    head = Eagle3Head(head_config(CONFIGURATION, len(token_ids), 2048), token_ids)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            spread = 1.0 + 0.3 * torch.randn(parameter.shape) if "norm" in name else torch.randn(parameter.shape) / 8
            parameter.copy_(spread.bfloat16())
    path = tmp_path_factory.mktemp("head")
    head.save(path)
    return head, path


@pytest.fixture(scope="module")
def text():
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, CONFIGURATION.vocab_size, (TOKENS,), generator=generator)
    states = torch.randn(TOKENS, 3 * CONFIGURATION.hidden_size, generator=generator) * 5
    embedding = torch.randn(CONFIGURATION.vocab_size, CONFIGURATION.hidden_size, generator=generator) * 0.1
    return ids, states, embedding


@torch.no_grad()
def test_unrolled_steps_are_those_of_the_server(head, text):
    """A prefill of captured states up to a base, then one token per step on what the head has given back."""
    trained, path = head
    ids, states, embedding = text
    unrolled = list(trained.unroll(ids, states, embedding[ids], BASES, STEPS))
    for column, base in enumerate(BASES.tolist()):
        served = ServedHead(path, embedding)
        positions = torch.arange(base + 1)
        logits, fed_back = served.step(ids[1 : base + 2], positions, states[: base + 1])
        torch.testing.assert_close(unrolled[0][column], logits[-1], rtol=1e-4, atol=1e-4)
        for step in range(1, STEPS):
            at = base + step
            logits, fed_back = served.step(ids[at + 1 : at + 2], torch.tensor([at]), fed_back[-1:])
            torch.testing.assert_close(unrolled[step][column], logits[-1], rtol=1e-4, atol=1e-4)


def test_draft_tokens_are_the_targets(head, text):
    trained, path = head
    served, loaded = ServedHead(path, text[2]), Eagle3Head.load(path)
    assert torch.equal(loaded.token_ids, trained.token_ids)
    hot = served.module.get_hot_token_id()
    if len(trained.token_ids) == CONFIGURATION.vocab_size:
        assert hot is None  # SGLang takes a draft's number as the token
    else:
        assert torch.equal(hot, trained.token_ids)
        assert load_file(path / "model.safetensors")["t2d"].nonzero()[:, 0].equal(trained.token_ids)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
