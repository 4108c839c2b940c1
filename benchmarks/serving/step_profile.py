"""What prefill chunks and decode steps of an engine consist of, from traces by SGLang's profiler.

The traces stay beside the CSV file, in the directory of its name without the suffix. Recording kernels costs time of
its own: shares are meant, and how long a step takes is what the engine shows without the profiler.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import results_file
from benchmarks.common.kernel_trace import Kernel, breakdown, read, step_starts
from benchmarks.common.streams import greedy, random_prompt

if TYPE_CHECKING:  # imported where an engine runs
    from sglang import Engine

COLUMNS = (
    "date", "engine", "step", "requests", "context_tokens", "steps", "group", "ms_per_step", "share_percent",
    "launches_per_step", "kernels", *results_file.SURROUNDINGS,
)  # fmt: skip
LONGEST_PREFILL = 131_072
LEAST_CHUNKS = 4  # fewer do not show which kernel comes once per step
SETTLING = 4  # the first part of the decode steps, one in so many, is left out: the profiler starts in it


def prefill_tokens(arguments: argparse.Namespace, chunk: int) -> int:
    """Tokens of the profiled prompt: whole chunks, as many as the longest length or LONGEST_PREFILL has."""
    return max(min(max(arguments.lengths), LONGEST_PREFILL) // chunk, LEAST_CHUNKS) * chunk


def decode_tokens(steps: int) -> int:
    """New tokens per request, so that ``steps`` steps can be recorded after every request has begun."""
    return 2 * steps + 64


def longest(arguments: argparse.Namespace, chunk: int) -> int:
    """Tokens of the longest profiled request."""
    decode = arguments.batch_length + decode_tokens(arguments.profile_steps)
    return max(prefill_tokens(arguments, chunk) + 1, decode)


def measure(engine: Engine, config: dict, arguments: argparse.Namespace, chunk: int) -> list[dict]:
    """Rows of decode steps per batch size, then of the first and the last chunk of a prompt.

    All traces are recorded before the first is read, so that they are there whatever is found in them.
    """
    folder, name = arguments.profile.with_suffix(""), f"{arguments.worker}-{arguments.commit}"
    decodes = {size: f"{name}-decode-{size}" for size in arguments.batch}
    for size, decode in decodes.items():
        prompts = [random_prompt(config, arguments.batch_length) for _ in range(size)]
        record_decode(engine, prompts, arguments.profile_steps, profiler_options(arguments.device, folder, decode))
    tokens = prefill_tokens(arguments, chunk)
    record_prefill(engine, random_prompt(config, tokens), profiler_options(arguments.device, folder, f"{name}-prefill"))
    found = []
    for size, decode in decodes.items():
        about = {"step": f"decode of {size}", "requests": size, "context_tokens": arguments.batch_length}
        trace = read_trace(folder, decode, arguments.device)
        found += [about | row for row in decode_rows(trace, arguments.profile_steps)]
    return found + prefill_rows(read_trace(folder, f"{name}-prefill", arguments.device), tokens, chunk)


def decode_rows(trace: list[Kernel], steps: int) -> list[dict]:
    """From the start of one step to that of a later one; the step that ran when recording began may be there too."""
    starts = step_starts(trace, range(steps - 1, steps + 3))[steps // SETTLING :]
    count = len(starts) - 1
    return [{"steps": count, **row} for row in breakdown(trace, starts[0], starts[-1], count)]


def prefill_rows(trace: list[Kernel], tokens: int, chunk: int) -> list[dict]:
    """Of the first and the last chunk; SGLang may begin a decode step before it knows that none is wanted."""
    chunks = tokens // chunk
    starts = [*step_starts(trace, range(chunks, chunks + 2)), max(kernel.end for kernel in trace)]
    return [
        {"step": f"prefill of {chunk}", "requests": 1, "context_tokens": index * chunk, "steps": 1, **row}
        for index in (0, chunks - 1)
        for row in breakdown(trace, starts[index], starts[index + 1], 1)
    ]


def record_prefill(engine: Engine, prompt: list[int], profiler: dict) -> None:
    """Record a whole prompt."""
    engine.start_profile(**profiler)
    engine.generate(input_ids=prompt, sampling_params=greedy(1))
    engine.stop_profile()


def record_decode(engine: Engine, prompts: list[list[int]], steps: int, profiler: dict, **request: Any) -> None:
    """Record ``steps`` steps, from when all requests have their first token.

    request: further arguments of ``engine.generate``.
    """
    waiting, started, sampling = set(range(len(prompts))), False, greedy(decode_tokens(steps))
    for event in engine.generate(input_ids=prompts, sampling_params=sampling, stream=True, **request):
        waiting.discard(event["index"])
        if not waiting and not started:
            engine.start_profile(**profiler, num_steps=steps)
            started = True


def profiler_options(device: str, folder: Path, name: str) -> dict:
    """Kernels alone, without stacks and shapes: the least that slows the host down."""
    return {
        "output_dir": str(folder),
        "profile_id": name,
        "activities": ["GPU" if device == "cuda" else "CPU"],
        "with_stack": False,
        "record_shapes": False,
    }


def read_trace(folder: Path, name: str, device: str) -> list[Kernel]:
    """What SGLang has written by now: it writes before it goes on to the next step."""
    return read(folder / f"{name}-TP-0.trace.json.gz", device)
