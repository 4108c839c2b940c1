"""Whether a load fits on a card, the flags of a server for it, and what to change where it does not fit."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from sala_kernels.kv_scales import FIRST_CAPABILITY

from sala_sglang.cards.data import Card
from sala_sglang.cards.memory import CACHES, MIB, Load, memory_bytes, snapshot_bytes, state_bytes, weight_bytes
from sala_sglang.config import SALAConfig

ERROR = 0.02  # of a sum, as tests/cards/test_memory.py bounds it
LEAST_CHUNK_TOKENS = 2048
# SGLang's chunk of prefill by memory in MiB (arg_groups/memory_hook.py): up to so much, so many tokens.
CHUNK_TOKENS = ((20 * 1024, 2048), (60 * 1024, 4096), (160 * 1024, 8192), (math.inf, 16384))
PAGE_TOKENS = 64
# What a server takes from the memory before it divides it: SGLang's fraction is one of what its process finds free.
BEFORE_BYTES = 600 * MIB
FRACTION_STEP = 0.001


class Change(NamedTuple):
    """Something that makes a load fit: what to do, and the load that is then served."""

    what: str
    load: Load


def caches(card: Card) -> tuple[str, ...]:
    """What keys and values can be in on a card, of CACHES.

    >>> from sala_sglang.cards import data
    >>> caches(data.find("RTX 3090")), caches(data.find("RTX 4090"))
    (('bf16',), ('bf16', 'fp8'))
    """
    return CACHES if card.capability >= FIRST_CAPABILITY else CACHES[:1]


def pool_tokens(context_tokens: int) -> int:
    """Tokens of the pages for a request of this length, and of the two that SGLang wants free beside it."""
    return (-(-context_tokens // PAGE_TOKENS) + 2) * PAGE_TOKENS


def default_chunk_tokens(memory_mib: int) -> int:
    """Tokens of a prefill chunk that SGLang takes on a card with this memory."""
    return next(tokens for limit, tokens in CHUNK_TOKENS if memory_mib < limit)


def spare_bytes(config: SALAConfig, card: Card, load: Load) -> int:
    """What is left of the card beside the load and ERROR of it; negative where it does not fit."""
    return card.memory_mib * MIB - round(sum(memory_bytes(config, load).values()) * (1 + ERROR))


def changes(config: SALAConfig, card: Card, load: Load) -> Iterator[Change]:
    """What would make a load fit that does not: first what changes no answer, then quantisation, then less load."""

    def fits(changed: Load) -> bool:
        return spare_bytes(config, card, changed) >= 0

    small = load._replace(chunk_tokens=LEAST_CHUNK_TOKENS)
    candidates = [
        Change("smaller chunks", small),
        Change("smaller chunks and no prefix cache", small._replace(prefix_cache=False)),
    ]
    for weights, cache in (("bf16", "fp8"), ("fp8", "bf16"), ("fp8", "fp8"), ("w4", "bf16"), ("w4", "fp8")):
        other = (weights, cache) != (load.weights, load.cache)
        if other and cache in caches(card) and _narrower(weights, load.weights):
            what = f"weights in {weights}, keys and values in {cache}"
            candidates += [Change(what, load._replace(weights=weights, cache=cache))]
            candidates += [Change(f"{what}, smaller chunks", small._replace(weights=weights, cache=cache))]
    candidates += [Change("fewer requests", load._replace(requests=count)) for count in range(load.requests - 1, 0, -1)]
    kinds = set()
    for change in candidates:
        kind = change.what.removesuffix(", smaller chunks")
        if kind not in kinds and fits(change.load):
            kinds.add(kind)
            yield change
    longest = longest_context(config, card, small)
    if longest >= PAGE_TOKENS:
        yield Change("a shorter context", small._replace(context_tokens=longest))


def _narrower(weights: str, given: str) -> bool:
    widths = {"bf16": 16, "fp8": 8, "w4": 4}
    return widths[weights] <= widths[given]


def longest_context(config: SALAConfig, card: Card, load: Load) -> int:
    """Tokens of the longest context that fits in place of that of ``load``, whole pages; 0 where none does."""
    without = sum(memory_bytes(config, load._replace(context_tokens=0, pool_tokens=None)).values())
    page = sum(memory_bytes(config, load._replace(context_tokens=PAGE_TOKENS, pool_tokens=None)).values()) - without
    return max(0, int((card.memory_mib * MIB / (1 + ERROR) - without) // page)) * PAGE_TOKENS


def states(config: SALAConfig, card: Card, load: Load) -> int:
    """Recurrent states to keep: those of running requests and, in half of what is left, snapshots of their prompts."""
    wanted = snapshot_bytes(config, load) if load.prefix_cache else 0
    room = max(0, spare_bytes(config, card, load)) // 2
    return load.states + min(wanted, room) // state_bytes(config)


def memory_fraction(config: SALAConfig, card: Card, load: Load) -> float:
    """SGLang's ``--mem-fraction-static`` for weights, pages and ``states``, which this bounds and the flags fill."""
    parts = memory_bytes(config, load)
    pools = sum(parts[name] for name in ("weights", "keys and values", "compressed keys"))
    pools += (states(config, card, load) + 1) * state_bytes(config)
    share = pools * (1 + ERROR) / (card.memory_mib * MIB - BEFORE_BYTES)
    return round_up(share)


def round_up(fraction: float) -> float:
    """To a multiple of FRACTION_STEP."""
    return round(math.ceil(fraction / FRACTION_STEP) * FRACTION_STEP, 3)


def flags(config: SALAConfig, card: Card, load: Load) -> list[str]:
    """Arguments of a server that holds ``load``, beside the model."""
    found = [
        f"--context-length {load.context_tokens}",
        f"--max-running-requests {load.requests}",
        f"--max-total-tokens {load.requests * pool_tokens(load.context_tokens)}",
        f"--chunked-prefill-size {load.chunk_tokens}",
        f"--mem-fraction-static {memory_fraction(config, card, load):.3f}",
    ]
    if load.prefix_cache:
        found.append(f"--max-mamba-cache-size {states(config, card, load)}")
    else:
        found.append("--disable-radix-cache")
    if load.weights == "fp8":
        found.append("--quantization fp8")
    if load.cache == "fp8":
        found.append("--kv-cache-dtype fp8_e4m3")
    return found


def notes(config: SALAConfig, card: Card, load: Load) -> list[str]:
    """What the flags do not say."""
    found = []
    if load.weights == "fp8" and card.memory_mib * MIB < weight_bytes(config, "bf16") * (1 + ERROR) + BEFORE_BYTES:
        found.append(
            "--quantization fp8 loads the weights in bfloat16 first, which do not fit: use a checkpoint in FP8, "
            "without the flag"
        )
    if load.weights == "w4":
        found.append("weights in w4 are a checkpoint with 4-bit weights, in groups of 128")
    if load.weights == "fp8" and card.fp8_tflops is None:
        found.append(f"compute capability {card.capability[0]}.{card.capability[1]} has no FP8 arithmetic")
    return found
