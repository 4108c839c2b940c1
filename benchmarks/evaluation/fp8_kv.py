"""What keys and values in 8 bits change in the answers of the plain model, by format and scales, as CSV.

    python -m benchmarks.evaluation.fp8_kv --lengths 2048 8192 --output benchmarks/results/evaluation/fp8_kv.csv

The prompts of ``sala-sglang eval``, one of each task and length. Log-probabilities of the next token at the last 512
positions are compared with those of the same model without rounding, all in float32: mean and 99.9th percentile of the
divergence KL(without ‖ with) and the share of equal first choices. Scales by head are those by which the largest number
of other prompts becomes the largest of the format. Runs on a CPU.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from random import Random

import torch
from torch import nn
from transformers import AutoTokenizer

from benchmarks.common import results_file
from benchmarks.common.options import add_commit
from sala_sglang.evaluation.samples import TASKS, SampleMaker
from sala_sglang.hf import MiniCPMSALAForCausalLM
from testing.rounded_cache import E4M3, E5M2, Scales, key_value_projections, round_keys_and_values

ROOT = Path(__file__).parents[2]
POSITIONS = 512
CALIBRATION_TOKENS = 4096
FORMATS = {"e4m3": E4M3, "e5m2": E5M2}
COLUMNS = (
    "date", "model", "prompt_tokens", "prompts", "format", "scales", "kl_mean", "kl_p999", "top1_equal", "largest_key",
    "largest_value", "torch", "commit",
)  # fmt: skip


def prompts(maker: SampleMaker, tokens: int, seed: str) -> Iterator[list[int]]:
    """Token ids, one prompt of each task."""
    for task in TASKS:
        message = maker.sample(Random(f"{seed} {task}"), task, tokens, depth=0.5).message
        chat = [{"role": "user", "content": message}]
        yield maker.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)


@torch.no_grad()
def log_probabilities(model: MiniCPMSALAForCausalLM, prompt: list[int]) -> torch.Tensor:
    """[POSITIONS, vocabulary] float64."""
    logits = model(torch.tensor([prompt]), logits_to_keep=POSITIONS).logits[0]
    return logits.double().log_softmax(-1)


@torch.no_grad()
def largest_numbers(model: MiniCPMSALAForCausalLM, texts: list[list[int]]) -> dict[int, Scales]:
    """Largest absolute key and value of each KV head, by layer."""
    config = model.config
    found = {layer: torch.zeros(2, config.num_key_value_heads) for layer in config.full_attention_layer_ids}

    def watch(layer: int, row: int) -> Callable:
        def note(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            heads = output.flatten(0, -2).unflatten(-1, (-1, config.head_dim)).abs().amax((0, 2))
            found[layer][row] = found[layer][row].maximum(heads)

        return note

    handles = [
        projection.register_forward_hook(watch(layer, row))
        for layer in found
        for row, projection in enumerate(key_value_projections(model, layer))
    ]
    for text in texts:
        model(torch.tensor([text]), logits_to_keep=1)
    for handle in handles:
        handle.remove()
    return {layer: (numbers[0], numbers[1]) for layer, numbers in found.items()}


def measure(model: MiniCPMSALAForCausalLM, maker: SampleMaker, tokens: int) -> Iterator[dict]:
    """Rows of one prompt length."""
    calibration = largest_numbers(model, list(prompts(maker, CALIBRATION_TOKENS, "calibration")))
    asked = list(prompts(maker, tokens, "measured"))
    largest = largest_numbers(model, asked)
    exact = [log_probabilities(model, prompt) for prompt in asked]
    for name, dtype in FORMATS.items():
        by_head = {
            layer: (keys / torch.finfo(dtype).max, values / torch.finfo(dtype).max)
            for layer, (keys, values) in calibration.items()
        }
        for scales, given in {"1": {}, "by head": by_head}.items():
            handles = round_keys_and_values(model, given, dtype)
            rounded = [log_probabilities(model, prompt) for prompt in asked]
            for handle in handles:
                handle.remove()
            kl = torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in zip(exact, rounded, strict=True)])
            equal = torch.cat([p.argmax(-1) == q.argmax(-1) for p, q in zip(exact, rounded, strict=True)])
            yield {
                "prompt_tokens": tokens,
                "prompts": len(asked),
                "format": name,
                "scales": scales,
                "kl_mean": f"{float(kl.mean()):.2e}",
                "kl_p999": f"{float(kl.quantile(0.999)):.2e}",
                "top1_equal": f"{float(equal.double().mean()):.4f}",
                "largest_key": f"{max(float(keys.max()) for keys, _ in largest.values()):.1f}",
                "largest_value": f"{max(float(values.max()) for _, values in largest.values()):.1f}",
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "checkpoints" / "sala-tiny")
    parser.add_argument("--lengths", type=int, nargs="+", required=True, help="tokens per prompt")
    parser.add_argument("--output", type=Path, required=True, help="CSV file; rows are appended")
    add_commit(parser)
    options = parser.parse_args()
    model = MiniCPMSALAForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    maker = SampleMaker(AutoTokenizer.from_pretrained(options.model))
    common = {"date": time.strftime("%Y-%m-%d"), "model": options.model.name}
    common |= {"torch": version("torch"), "commit": options.commit}
    for tokens in options.lengths:
        for row in measure(model, maker, tokens):
            results_file.append(options.output, common | row, COLUMNS)
            print(", ".join(f"{name}={value}" for name, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
