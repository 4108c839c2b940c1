"""``sala-sglang warm``: compiles a server's kernels for a GPU that need not be there, and says where they are."""

import argparse
import sys
import time
from pathlib import Path

import torch
import triton
from sala_kernels import targets
from sala_kernels.kv_scales import FIRST_CAPABILITY
from sala_kernels.targets import Capability

from sala_sglang.ahead import sampling
from sala_sglang.ahead.compile import compile_server, take_paths_as_told, takes
from sala_sglang.ahead.form import Form, table_tokens
from sala_sglang.cards import data
from sala_sglang.config import SALAConfig
from sala_sglang.models.products import reads_float8_rows
from sala_sglang.models.sharding import check_tensor_parallel
from sala_sglang.quantization.checkpoint_files import find_configuration
from sala_sglang.quantization.plan import read_plan

FP8_CACHE = "fp8_e4m3"


def run(options: argparse.Namespace) -> int:
    """Compile and report; returns 0, or 2 for arguments that no server could have."""
    try:
        capability = find_capability(options.gpu)
        take_paths_as_told(capability)
        form = make_form(options, capability)
    except ValueError as error:
        print(f"sala-sglang warm: {error}", file=sys.stderr)
        return 2
    if options.output:
        triton.knobs.cache.dir = str(options.output.resolve())
    folder, began = Path(triton.knobs.cache.dir).resolve(), time.perf_counter()
    beside = sampling.start_compiling(capability)
    compiled = compile_server(form, capability)
    new = sum(not one.found for one in compiled)
    seconds = time.perf_counter() - began
    print(
        f"{len(compiled)} kernels for compute capability {capability[0]}.{capability[1]} are in {folder}: {new} "
        f"compiled, {len(compiled) - new} found, in {seconds:.0f} s"
    )
    if options.output:
        print(
            f"A server finds them with TRITON_CACHE_DIR={folder}, and at no other path: Triton notes where files are."
        )
    wrong = sampling.problem(beside)
    print(f"FlashInfer's sampling is {f'not compiled: {wrong}' if wrong else 'in its own cache'}")
    return 0


def find_capability(name: str | None) -> Capability:
    """Compute capability of the card ``name``, or of the GPU that is here. Raises ValueError where there is none."""
    if name is not None:
        return data.find(name).capability
    if not torch.cuda.is_available():
        known = ", ".join(card.name for card in data.CARDS)
        raise ValueError(f"--gpu is needed, since there is no GPU here; allowed: {known}")
    found = targets.capability(torch.device("cuda"))
    assert found
    return found


def make_form(options: argparse.Namespace, capability: Capability) -> Form:
    """The server that ``options`` describe. Raises ValueError for one that cannot be."""
    config = SALAConfig.from_pretrained(str(options.model)) if options.model else SALAConfig()
    check_tensor_parallel(config, options.tp_size)
    fp8_cache = options.kv_cache_dtype == FP8_CACHE
    if fp8_cache and capability < FIRST_CAPABILITY:
        has, needs = (".".join(map(str, pair)) for pair in (capability, FIRST_CAPABILITY))
        raise ValueError(f"--kv-cache-dtype {FP8_CACHE} needs compute capability {needs}; this GPU has {has}")
    given = find_configuration(options.model, config) if options.model else None
    schemes = read_plan(config, given, options.model).schemes if given else {}
    context = options.context_length or config.max_position_embeddings
    return Form(
        config=config,
        context_tokens=context,
        table_tokens=table_tokens(context, options.speculative_num_draft_tokens),
        ranks=options.tp_size,
        dtype=served_dtype(config, options.dtype),
        fp8_cache=fp8_cache,
        verified_rows=options.speculative_num_draft_tokens,
        schemes=schemes,
        float8_rows=takes(targets.FLOAT8_ROWS, capability) and any(map(reads_float8_rows, schemes.values())),
    )


def served_dtype(config: SALAConfig, asked: str) -> torch.dtype:
    """What SGLang makes of --dtype: "auto" is the checkpoint's, and half precision where that is float32."""
    if asked != "auto":
        return getattr(torch, asked)
    stored = config.dtype or torch.bfloat16
    return torch.float16 if stored == torch.float32 else stored
