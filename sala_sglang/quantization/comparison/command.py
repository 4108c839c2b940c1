"""What ``sala-sglang compare`` does with its arguments, and its exit codes."""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sala_sglang import __version__, hf
from sala_sglang.evaluation.client import Client, Unreachable
from sala_sglang.quantization.comparison.blocks import agreement
from sala_sglang.quantization.comparison.bounds import BOUNDS
from sala_sglang.quantization.comparison.checks import Check, check
from sala_sglang.quantization.comparison.logprobs import Compared, ask_both
from sala_sglang.quantization.layerwise import LayerwiseModel
from sala_sglang.quantization.texts import Text, TextMaker
from sala_sglang.quantization.weights import CheckpointWeights

WITHIN, BROKEN, IMPOSSIBLE = 0, 1, 2


def run(options: argparse.Namespace) -> int:
    """Compare and return the exit code: 0 within all bounds, 1 where one is broken, 2 where nothing can be compared."""
    try:
        first, second = (Client(url, None) for url in _two("--base-url", options.base_url))
        models = _two("--model", options.model) if options.model else []
        _check_contexts(options.lengths, first, second)
        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer or first.tokenizer_path())
        texts = list(make_texts(tokenizer, options.lengths, options.items, options.seed))
        compared = [ask_both(first.root, second.root, text) for text in tqdm(texts, unit=" texts")]
        blocks = _blocks(models, texts[: len(options.lengths)]) if models else {}
    except (Unreachable, ValueError, FileNotFoundError) as error:
        print(f"sala-sglang compare: {error}", file=sys.stderr)
        return IMPOSSIBLE
    checks = list(check(compared, blocks, BOUNDS[options.bounds]))
    for line in _table(checks, compared, options.bounds):
        print(line)
    if options.output:
        _write(options.output, checks, (first.root, second.root), options)
    return WITHIN if all(one.within for one in checks) else BROKEN


def _two(option: str, given: list) -> list:
    if len(given) != 2:
        raise ValueError(f"{option}: got {len(given)} of them; allowed: two, the model before and the one to judge")
    return given


def _check_contexts(lengths: tuple[int, ...], *clients: Client) -> None:
    for client in clients:
        if client.context_tokens and max(lengths) >= client.context_tokens:
            raise ValueError(
                f"--lengths: {max(lengths)} tokens are not possible; allowed: below {client.context_tokens}, the "
                f"max_model_len of {client.root}"
            )


def make_texts(tokenizer: PreTrainedTokenizerBase, lengths: tuple[int, ...], items: int, seed: int) -> Iterator[Text]:
    """Rounds of a text of each length, until so many items stand in them."""
    maker = TextMaker(tokenizer)
    found = number = 0
    while found < items:
        for length in lengths:
            text = maker.text(length, Random(f"{seed} {length} {number}"))
            found += len(text.items)
            yield text
        number += 1


def _blocks(models: list[Path], texts: list[Text]) -> dict[int, float]:
    """Of the first round of texts."""
    hf.register()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    first, second = (LayerwiseModel(CheckpointWeights(folder), device, dtype) for folder in models)
    return agreement(first, second, [text.tokens for text in texts])


def _table(checks: list[Check], compared: list[Compared], bounds: str) -> Iterator[str]:
    tokens, items = (sum(len(part) for part in parts) for parts in zip(*_sizes(compared), strict=True))
    yield f"{len(compared)} texts, {tokens} tokens, {items} items to find; bounds of sala-tiny in {bounds}"
    width = max(len(one.measure) for one in checks)
    for one in checks:
        bound = "" if one.bound is None else f"{one.bound:>9.4f}  {'within' if one.within else 'BROKEN'}"
        yield f"{one.measure:<{width}}  {one.positions:>12}  {one.value:>9.4f}  {bound}".rstrip()


def _sizes(compared: list[Compared]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for one in compared:
        yield one.divergence.kl, one.found


def _write(path: Path, checks: list[Check], servers: tuple[str, str], options: argparse.Namespace) -> None:
    about = {
        "first": servers[0], "second": servers[1], "bounds": options.bounds,
        "lengths": " ".join(map(str, options.lengths)), "items": options.items, "seed": options.seed,
        "sala_sglang": __version__,
    }  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("measure", "positions", "value", "bound", "within", *about))
        for one in checks:
            bound = "" if one.bound is None else one.bound
            writer.writerow((one.measure, one.positions, one.value, bound, one.within, *about.values()))
