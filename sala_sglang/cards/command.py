"""``sala-sglang plan``: prints whether a load fits on a card, the flags of a server, and what times to expect."""

import argparse
import sys

from sala_sglang.cards import data, plan, speed
from sala_sglang.cards.data import Card
from sala_sglang.cards.memory import MIB, Load, memory_bytes, snapshot_bytes
from sala_sglang.config import SALAConfig

OVERWRITE = "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1"


def run(options: argparse.Namespace) -> int:
    """Print the plan; returns 0 where the load fits, 1 where it does not, and 2 for what the card cannot run."""
    config, card = SALAConfig(), data.find(options.gpu)
    if options.kv not in (allowed := plan.caches(card)):
        print(
            f"sala-sglang plan: --kv: {options.kv!r} is not served on {card.name}, compute capability "
            f"{card.capability[0]}.{card.capability[1]}; allowed: {', '.join(allowed)}",
            file=sys.stderr,
        )
        return 2
    load = Load(
        context_tokens=options.context,
        requests=options.requests,
        chunk_tokens=plan.default_chunk_tokens(card.memory_mib),
        weights=options.weights,
        cache=options.kv,
    )
    print(f"{card.name}, {card.memory_mib:,} MiB, compute capability {card.capability[0]}.{card.capability[1]}")
    print(f"{_described(load)}\n")
    _print_parts(config, card, load)
    fits = plan.spare_bytes(config, card, load) >= 0
    if not fits:
        possible = list(plan.changes(config, card, load))
        print("\nIt does not fit." + (" It would with" if possible else " Nothing makes it fit: take more GPUs."))
        for change in possible:
            total = sum(memory_bytes(config, change.load).values()) // MIB
            print(f"  {change.what}: {_described(change.load)}; {total:,} MiB")
        if not possible:
            return 1
        load = possible[0].load
        print(f"\nWith {possible[0].what}:")
    else:
        print("\nIt fits. The arguments of the server:")
    _print_command(config, card, load)
    for note in plan.notes(config, card, load):
        print(f"\nNote: {note}.")
    _print_times(config, card, load)
    return 0 if fits else 1


def longest_contexts(name: str, memory_bytes: int, capability: tuple[int, int]) -> str:
    """What one request of the longest context that fits has, for ``doctor``, on a known card or on another."""
    card = Card(name, name, capability, memory_bytes // MIB, None, None, None, "")
    found = []
    for weights in ("bf16", "fp8"):
        tokens = plan.longest_context(SALAConfig(), card, Load(0, 1, plan.LEAST_CHUNK_TOKENS, weights))
        found.append(f"{tokens:,} tokens with {weights} weights" if tokens else f"not the {weights} weights")
    try:
        shown = data.find(name).name
    except ValueError:
        return f"{', '.join(found)} (computed; no known card)"
    return f'{", ".join(found)} (computed; more from: sala-sglang plan --gpu "{shown}" --context N)'


def _described(load: Load) -> str:
    requests = "1 request" if load.requests == 1 else f"{load.requests} requests"
    cache = "" if load.prefix_cache else ", no prefix cache"
    return (
        f"{requests} of {load.context_tokens:,} tokens, weights {load.weights}, keys and values {load.cache}, "
        f"chunks of {load.chunk_tokens:,}{cache}"
    )


def _print_parts(config: SALAConfig, card: Card, load: Load) -> None:
    parts = memory_bytes(config, load)
    lines = {name: size for name, size in parts.items() if size} | {"sum": sum(parts.values())}
    lines["left, beside 2 % of the sum"] = plan.spare_bytes(config, card, load)
    lines["snapshots of the prompts, which give way"] = snapshot_bytes(config, load)
    width = max(map(len, lines))
    print(f"{'':<{width}}  {'MiB':>8}")
    for name, size in lines.items():
        print(f"{name:<{width}}  {size // MIB:>8,}")


def _print_command(config: SALAConfig, card: Card, load: Load) -> None:
    longer = load.context_tokens > config.max_position_embeddings
    command = f"{OVERWRITE + ' ' if longer else ''}sglang serve --model-path MODEL --trust-remote-code"
    print(f"\n  {command} \\")
    print(" \\\n".join(f"      {flag}" for flag in plan.flags(config, card, load)))


def _print_times(config: SALAConfig, card: Card, load: Load) -> None:
    tokens, weights = load.context_tokens, load.weights
    first = speed.first_token_s(config, card, tokens, weights)
    each = speed.decode_ms(config, card, tokens, weights, load.cache)
    print(f"\nTimes at {tokens:,} tokens, one request, computed and not measured:")
    for what, floor, unit in (("first token", first, "s"), ("each further token", each, "ms")):
        kind = "prefill" if unit == "s" else "decode"
        if floor is None:
            print(f"  {what}: not known, for want of a data sheet")
            continue
        ratio = speed.HOPPER_RATIO.get((kind, weights))
        above = f"; {floor * ratio:.3g} {unit} if as far above it as an H200 is" if ratio else ""
        print(f"  {what}: {floor:.3g} {unit} at least{above}")
