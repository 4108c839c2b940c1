"""What ``sala-sglang quantize`` does with its arguments, and its exit codes."""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer

from sala_sglang import hf
from sala_sglang.quantization import texts
from sala_sglang.quantization.checkpoint_files import Header
from sala_sglang.quantization.plan import WEIGHT, QuantizationPlan
from sala_sglang.quantization.scheme import Scheme
from sala_sglang.quantization.weights import CheckpointWeights
from sala_sglang.quantization.writer import card
from sala_sglang.quantization.writer.output import CONFIG, CheckpointWriter
from sala_sglang.quantization.writer.passes import quantise
from sala_sglang.quantization.writer.recipes import RECIPES, choose_schemes, configuration

WRITTEN, IMPOSSIBLE = 0, 2
# Of what the recipes write beside scales.
DTYPES = {
    "weight": torch.float8_e4m3fn,
    "weight_packed": torch.int32,
    "weight_shape": torch.int64,
}


def run(options: argparse.Namespace) -> int:
    """Quantise and return the exit code: 0 for a checkpoint in --out, 2 for what cannot be quantised."""
    try:
        _quantise(options)
    except (ValueError, FileExistsError, FileNotFoundError) as error:
        print(f"sala-sglang quantize: {error}", file=sys.stderr)
        return IMPOSSIBLE
    return WRITTEN


def _quantise(options: argparse.Namespace) -> None:
    hf.register()
    weights = CheckpointWeights(options.model)
    if weights.schemes:
        raise ValueError(f"--model: {str(options.model)!r} is quantised; allowed: weights of 16 bits or more")
    schemes = choose_schemes(options.recipe, weights.shapes)
    given = configuration(schemes)
    headers = _headers(weights, schemes)
    # What is to be written must be what the loader takes.
    if QuantizationPlan(weights.config, given, headers).schemes != schemes:
        raise RuntimeError("the plan of the new checkpoint is another one")
    calibration = _texts(options, weights)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    begin = time.monotonic()
    with CheckpointWriter(options.out, headers) as writer:
        given_texts = calibration and calibration[1]
        costs = quantise(weights, schemes, writer.add, given_texts, device)
        about = None
        if calibration:
            name = torch.cuda.get_device_name() if device == "cuda" else "a CPU"
            seconds = time.monotonic() - begin
            about = card.Calibration(calibration[0], [len(text) for text in calibration[1]], seconds, name)
        config = json.loads((options.model / CONFIG).read_text()) | {"quantization_config": given}
        writer.finish(config, card.make_card(weights, options.recipe, schemes, about, costs), options.model)
    for line in card.lines(costs):
        print(line)
    print(f"Wrote {options.recipe} weights and a card to {options.out}")


def _texts(options: argparse.Namespace, weights: CheckpointWeights) -> tuple[str, list[list[int]]] | None:
    """Where texts come from, in words, and their token ids; None where the recipe needs none and none are given."""
    lengths = texts.default_lengths(weights.config)
    given: Path | str | None = options.calibration
    if given is None and not RECIPES[options.recipe].has_integers:
        return None
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    if isinstance(given, Path):
        return f"those of {given.name}", texts.read(given, tokenizer, lengths)
    return "generated English ones", [text.tokens for text in texts.generate(tokenizer, lengths, seed=0)]


def _headers(weights: CheckpointWeights, schemes: dict[str, Scheme]) -> dict[str, Header]:
    """Of every tensor of the new checkpoint, in its order."""
    found: dict[str, Header] = {}
    for name, shape in weights.shapes.items():
        linear = name.removesuffix(WEIGHT)
        if linear not in schemes:
            found[name] = weights.headers[name]
            continue
        for suffix, stored in schemes[linear].stored().items():
            scale = torch.bfloat16 if "weight_packed" in schemes[linear].stored() else torch.float32
            found[f"{linear}.{suffix}"] = Header(DTYPES.get(suffix, scale), stored.shape(*shape))
    return found
