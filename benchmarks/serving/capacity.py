"""Memory that serving MiniCPM-SALA on one GPU takes, as CSV: from shapes, and where it says so as measured.

    python -m benchmarks.serving.capacity --context 1048576 --requests 1 \\
        --output benchmarks/results/serving/capacity.csv

Released sizes in bfloat16, tensor-parallel size 1, SGLang's prefix cache and overlap scheduling on: the arithmetic of
``sala-sglang plan`` (sala_sglang/cards/memory.py).
Behind the sum: what keys and values take in FP8 (--kv-cache-dtype fp8_e4m3), and the sum with these.
"""

import argparse
from pathlib import Path

from benchmarks.common import results_file
from sala_sglang.cards.memory import Load, memory_bytes, snapshot_bytes
from sala_sglang.config import SALAConfig

KEYS_VALUES = "keys and values"
BESIDE = f"{KEYS_VALUES} in FP8 instead", "sum with these"
COLUMNS = "context_tokens", "requests", "chunk_tokens", "what", "bytes"


def with_sums(sizes: dict[str, int], in_fp8: int) -> dict[str, int]:
    """``sizes``, their sum, and the same with keys and values of ``in_fp8`` bytes."""
    total = sum(sizes.values())
    return sizes | {"sum": total} | dict(zip(BESIDE, (in_fp8, total - sizes[KEYS_VALUES] + in_fp8), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, required=True, help="tokens of a request")
    parser.add_argument("--requests", type=int, required=True, help="requests at once")
    parser.add_argument("--chunk", type=int, default=8192, help="tokens of a prefill chunk (default: 8192)")
    parser.add_argument("--output", type=Path, required=True, help="CSV file; rows are appended")
    options = parser.parse_args()
    config, load = SALAConfig(), Load(options.context, options.requests, options.chunk)
    sizes = memory_bytes(config, load) | {"snapshots of their prompts": snapshot_bytes(config, load)}
    in_fp8 = memory_bytes(config, load._replace(cache="fp8"))[KEYS_VALUES]
    sizes = with_sums(sizes, in_fp8)
    for what, size in sizes.items():
        row = options.context, options.requests, options.chunk, what, size
        results_file.append(options.output, dict(zip(COLUMNS, row, strict=True)), COLUMNS)
        print(f"{what:48} {size / 2**30:8.3f} GiB")


if __name__ == "__main__":
    main()
