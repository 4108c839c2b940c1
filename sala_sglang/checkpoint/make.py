"""Checkpoints with random weights in the released format: ``tiny`` for tests, ``full`` for measurements."""

import json
import math
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from sala_sglang.checkpoint.parameter_shapes import tensor_shapes
from sala_sglang.checkpoint.tokenizer import make_tokenizer
from sala_sglang.config import LIGHTNING, SPARSE, SALAConfig

NORM_STD = 0.1  # norm weights spread around 1, so that a norm that is left out shows
PIECE_ELEMENTS = 1 << 24  # random numbers held at a time; a part of what makes a seed reproducible


@dataclass(frozen=True)
class Preset:
    """config: what differs from the released values. turn_end_id, turn_start_id: the chat tokens."""

    shards: int
    bpe_tokens: int
    turn_end_id: int
    turn_start_id: int
    config: dict = field(default_factory=dict)

    def make_config(self) -> SALAConfig:
        return SALAConfig(
            architectures=["MiniCPMSALAForCausalLM"],
            dtype="bfloat16",
            eos_token_id=[2, self.turn_end_id],
            **self.config,
        )


TINY_CONFIG: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "lightning_nh": 4,
    "lightning_nkv": 4,
    "lightning_head_dim": 32,
    "dim_model_base": 32,
    "max_position_embeddings": 16384,
    "initializer_range": 0.4,
    "mixer_types": [SPARSE, LIGHTNING, LIGHTNING, SPARSE, LIGHTNING, LIGHTNING],
    "sparse_config": {
        "kernel_size": 32,
        "kernel_stride": 16,
        "init_blocks": 1,
        "block_size": 64,
        "window_size": 128,
        "topk": 4,
        "use_nope": False,
        "dense_len": 512,
    },
}
PRESETS = {
    "tiny": Preset(shards=2, bpe_tokens=510, turn_end_id=510, turn_start_id=511, config=TINY_CONFIG),
    # The released ids of the chat tokens; the ids between the small vocabulary and them stand for nothing.
    "full": Preset(shards=4, bpe_tokens=510, turn_end_id=73440, turn_start_id=73441),
}


def make_checkpoint(preset: str, out: Path, seed: int = 0) -> None:
    """Write configuration, tokenizer and random bfloat16 weights of ``preset`` to the directory ``out``.

    A tensor depends on seed and name alone. Matrices are normal with the standard deviation
    ``initializer_range``, divided by sqrt(hidden_size / dim_model_base) except in the vocabulary's two, as
    maximal-update parametrisation has it; norm weights are normal around 1. Weights are drawn and written in
    pieces, so that ``full`` takes 0.8 GB of memory on top of the libraries, and 19 GB of disk. Raises ValueError
    for an unknown preset and FileExistsError if ``out`` is not empty.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset: got {preset!r}, allowed are {', '.join(map(repr, PRESETS))}")
    out = Path(out)
    if out.is_dir() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty")
    out.mkdir(parents=True, exist_ok=True)
    chosen = PRESETS[preset]
    config = chosen.make_config()
    config.save_pretrained(out)
    GenerationConfig(
        do_sample=True,
        temperature=0.9,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    ).save_pretrained(out)
    make_tokenizer(out, chosen.bpe_tokens, chosen.turn_end_id, chosen.turn_start_id)
    write_weights(config, out, chosen.shards, seed)


def write_weights(config: SALAConfig, out: Path, shards: int, seed: int) -> None:
    """Write ``shards`` safetensors files of about equal size, a thread each, and the index."""
    shapes = tensor_shapes(config)
    weight_map: dict[str, str] = {}
    with ThreadPoolExecutor(shards) as pool:
        writers = []
        for number, names in enumerate(split_evenly(shapes, shards), start=1):
            file = f"model-{number:05d}-of-{shards:05d}.safetensors"
            weight_map |= dict.fromkeys(names, file)
            part = {name: shapes[name] for name in names}
            writers.append(pool.submit(write_shard, out / file, part, config, seed))
        for writer in writers:
            writer.result()
    parameters = sum(map(math.prod, shapes.values()))
    metadata = {"total_parameters": parameters, "total_size": 2 * parameters}
    index = {"metadata": metadata, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def split_evenly(shapes: dict[str, tuple[int, ...]], parts: int) -> list[list[str]]:
    """Names in their order, cut into ``parts`` runs with about the same number of elements."""
    share = sum(map(math.prod, shapes.values())) / parts
    runs: list[list[str]] = [[] for _ in range(parts)]
    seen = 0
    for name, shape in shapes.items():
        runs[min(int(seen / share), parts - 1)].append(name)
        seen += math.prod(shape)
    return runs


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], config: SALAConfig, seed: int) -> None:
    """Write one safetensors file: its header first, then tensor by tensor in pieces."""
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            for piece in random_pieces(name, shape, config, seed):
                file.write(piece.view(torch.uint8).numpy().data)


def random_pieces(name: str, shape: tuple[int, ...], config: SALAConfig, seed: int) -> Iterator[torch.Tensor]:
    """The tensor ``name``, flat, in bfloat16 pieces of up to PIECE_ELEMENTS."""
    # The generator of the CPU uses the low 32 bits of a seed and no more.
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    mean, std = weight_distribution(name, shape, config)
    for begin in range(0, math.prod(shape), PIECE_ELEMENTS):
        count = min(PIECE_ELEMENTS, math.prod(shape) - begin)
        yield (torch.randn(count, generator=generator) * std + mean).bfloat16()


def weight_distribution(name: str, shape: tuple[int, ...], config: SALAConfig) -> tuple[float, float]:
    """Mean and standard deviation of a tensor's elements."""
    if len(shape) == 1:
        return 1.0, NORM_STD
    if name in ("model.embed_tokens.weight", "lm_head.weight"):
        return 0.0, config.initializer_range
    return 0.0, config.initializer_range / math.sqrt(config.logit_divisor)
