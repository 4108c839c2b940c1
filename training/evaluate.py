"""How often a checkpoint finds what it is asked for, and how far block selection moves its predictions.

``python -m training.evaluate --model DIR --lengths 1024,4096 --output FILE.csv`` measures three ways to attend:
``dense``, ``sparse`` as the model says, and ``random``, with the free blocks drawn at random, which shows what
finding the right blocks is worth.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from sala_kernels.layout import SparseGeometry

from sala_sglang.hf import MiniCPMSALAForCausalLM, sparse
from training.data import Encoder
from training.saved_runs import write_rows

MODES = ("dense", "sparse", "random")
NEVER_SPARSE = 1 << 30


@dataclass(frozen=True)
class Result:
    """found: share of answers whose digits are all the likeliest; kl: of the digits' distributions, from dense."""

    tokens: int
    mode: str
    conversations: int
    answers: int
    found: float
    kl: float


def random_blocks(
    queries: torch.Tensor,
    fine: torch.Tensor,
    coarse: torch.Tensor,
    positions: torch.Tensor,
    length: int,
    geometry: SparseGeometry,
) -> torch.Tensor:
    """Stands in for ``sparse.select_blocks``: the forced blocks, and as many others as would be free, at random."""
    blocks = torch.arange(-(-length // geometry.block_size), device=queries.device)
    current = (positions // geometry.block_size)[:, None, None]
    forced = (blocks < geometry.init_blocks) | (blocks >= current - geometry.local_blocks)
    scores = torch.rand(len(positions), fine.shape[1], len(blocks), device=queries.device)
    scores = scores.masked_fill(forced, torch.inf).masked_fill(blocks > current, -torch.inf)
    best = scores.topk(min(geometry.selected_blocks, len(blocks)), dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True) & (blocks <= current)


@contextmanager
def attending(model: MiniCPMSALAForCausalLM, mode: str) -> Iterator[None]:
    """Let ``model`` attend in one of MODES."""
    dense_len, select = model.config.sparse_config["dense_len"], sparse.select_blocks
    if mode == "dense":
        model.config.sparse_config["dense_len"] = NEVER_SPARSE
    if mode == "random":
        sparse.select_blocks = random_blocks
    try:
        yield
    finally:
        model.config.sparse_config["dense_len"], sparse.select_blocks = dense_len, select


@torch.no_grad()
def digit_logprobs(model: MiniCPMSALAForCausalLM, ids: list[int], asked: list[int]) -> torch.Tensor:
    """Log-probabilities [len(asked), vocabulary] after the asked positions."""
    inputs = torch.tensor([ids], device=model.device)
    at = torch.tensor(asked, device=model.device)
    return model(inputs, use_cache=False, logits_to_keep=at).logits[0].log_softmax(-1)


def measure(
    model: MiniCPMSALAForCausalLM, encoder: Encoder, tokens: int, conversations: int, seed: int
) -> list[Result]:
    """One result per mode over the same conversations of ``tokens`` tokens."""
    right = dict.fromkeys(MODES, 0)
    kl = dict.fromkeys(MODES, 0.0)
    answers = digits = 0
    for number in range(conversations):
        ids, _, asked = encoder.about_a_text(Random(f"evaluation {seed} {tokens} {number}"), tokens)
        expected = torch.tensor([ids[p + 1] for p in asked], device=model.device)
        groups = answer_groups(asked)
        answers, digits = answers + len(groups), digits + len(asked)
        dense = None
        for mode in MODES:
            with attending(model, mode):
                logprobs = digit_logprobs(model, ids, asked)
            dense = logprobs if dense is None else dense
            hits = (logprobs.argmax(-1) == expected).tolist()
            right[mode] += sum(all(hits[begin:end]) for begin, end in groups)
            kl[mode] += float((dense.exp() * (dense - logprobs)).sum())
    return [Result(tokens, m, conversations, answers, right[m] / answers, kl[m] / digits) for m in MODES]


def answer_groups(asked: list[int]) -> list[tuple[int, int]]:
    """Ranges of ``asked`` that are one number: runs of neighbouring positions."""
    starts = [i for i, p in enumerate(asked) if i == 0 or asked[i - 1] != p - 1]
    return list(zip(starts, [*starts[1:], len(asked)], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--lengths", default="1024,2048,4096,8192,16384", help="tokens, separated by commas")
    parser.add_argument("--conversations", type=int, default=16, help="per length")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True, help="CSV file")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = MiniCPMSALAForCausalLM.from_pretrained(options.model, dtype=torch.float32).to(device).eval()
    encoder = Encoder(options.model)
    results = []
    for tokens in map(int, options.lengths.split(",")):
        for result in measure(model, encoder, tokens, options.conversations, options.seed):
            print(result, flush=True)
            results.append(asdict(result))
    write_rows(options.output, results)


if __name__ == "__main__":
    main()
