"""Write docs/reference/cards.md from the known cards, the arithmetic of memory and times, and what was measured.

python scripts/reference_cards.py
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from sala_kernels import targets

from sala_sglang.cards import data, plan, speed
from sala_sglang.cards.data import Card
from sala_sglang.cards.memory import MIB, Load, memory_bytes
from sala_sglang.config import SALAConfig

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "cards.md"
RESULTS = ROOT / "benchmarks" / "results"
CONFIG = SALAConfig()
LENGTHS = {65_536: "64K", 131_072: "128K", 262_144: "256K", 524_288: "512K", 1_048_576: "1M"}
# OpenBMB's model card of MiniCPM-SALA: seconds to the first token of one sequence, bfloat16.
PUBLISHED = {
    "RTX 6000D": {"64K": 12.3, "128K": 25.2, "256K": 51.6, "512K": 109.9, "1M": 250.3},
    "RTX 5090": {"64K": 10.8, "128K": 22.3, "256K": 45.9, "512K": 100.3, "1M": 222.6},
}
MEASURED = {"H100": ("serving/speed.csv", "plugin"), "H200": ("serving/side_by_side.csv", "plugin")}
PATH_NAMES = {
    targets.SHARED_BLOCKS: "`shared_blocks`, sparse prefill in CUDA C++",
    targets.EARLY_LAUNCH: "`early_launch`, kernels that are set up while the one in front runs",
    targets.SKINNY_LINEAR: "`skinny_linear`, matrix products of few rows",
    targets.FLOAT8_ROWS: "`float8_rows`, prompts in FP8 whose rows norms, gates and activations write",
}

TEXT = """\
# Cards

<!-- Made by scripts/reference_cards.py from sala_sglang/cards, sala_kernels/targets.py and benchmarks/results. -->

What each GPU holds, how fast it can be, and how much of that is known. Three words are meant exactly:

* **measured**: a row of `benchmarks/results` says so, with GPU, driver and versions.
* **computed**: from shapes, data sheets and how kernels compile. No such GPU has run this project.
* **not known**: neither.

| card | MiB | capability | longest context | FP8 weights | and FP8 keys and values | times | kernels |
|---|---|---|---|---|---|---|---|
{cards}

Longest contexts are in tokens, in bfloat16 unless it says FP8, and computed for one request with a prefix cache, chunks
of 2,048 tokens, and 2 % to spare, by the arithmetic of `sala-sglang plan`; the model was measured up to 2,097,152
tokens. {fits}

    sala-sglang plan --gpu "RTX 5090" --context 1M --weights fp8 --kv fp8

prints memory by part, the arguments of a server, and what to change where it does not fit. FP8 keys and values
were compared with their specification on an H200, and not yet timed.

## Memory: computed beside measured

Peaks of one request on one H200 ([side by side](../benchmarks/results/serving.md)): {memory_surroundings}.

| prompt tokens | weights | computed, MiB | measured, MiB | difference |
|---|---|---|---|---|
{memory}

## Times: floors beside measured

A floor is what the data sheet allows: the bytes of a decode step over the bandwidth, the operations of a prompt over
the dense arithmetic of the tensor cores. Nothing reaches its floor. One request, bfloat16, random weights.

| card | prompt tokens | first token: floor, s | measured, s | ratio | further token: floor, ms | measured, ms | ratio |
|---|---|---|---|---|---|---|---|
{measured_times}

The ratios of the first token are much the same on both cards. Whether other generations come as close to their floors
is not known.

## Times of other cards: floors

Computed. Seconds to the first token, and milliseconds per further token at 1M tokens; one request, bfloat16 unless it
says FP8, whether the length fits or not.

| card | {lengths} | 1M, FP8 weights | further token | further token, FP8 weights |
|---|{dashes}|---|---|---|
{floors}

## The cards of the model card

Seconds to the first token, bfloat16, one sequence. "Published" is from OpenBMB's model card.
"As an H200" is the floor times {ratio}, how far an H200 was from its floor at 128K: computed, and no promise.

| card | | {lengths} |
|---|---|{dashes}|
{published}

## What each generation runs

Chosen where `yes`; `can` is possible and off, because nobody has measured it there. `SALA_PATHS` forces a path on
([environment](environment.md)), so that tests and benchmarks on one GPU can run all of them.

| path | {capabilities} | why |
|---|{capability_dashes}|---|
{paths}

Launch options are those measured on 9.0, except for

{choices}

Every kernel is compiled for each of these capabilities at every size at which a server launches it, in bfloat16 and
for 1, 2, 4 and 8 ranks ([`operators/registers.csv`](../../benchmarks/results/operators/registers.csv), made
by `python -m benchmarks.operators.registers`; a test compares it with the code):

| capability | kernels and sizes | largest shared memory of a program, of the limit | that spill | most bytes |
|---|---|---|---|---|
{compiled}

Triton {triton}. What spills most is the top-k of contexts beyond a million tokens, on Hopper too. Spilled bytes are
loads and stores of one thread, as ptxas counts them.

## Where the numbers of the cards come from

Memory is what the driver reports.

| card | bandwidth, GB/s | bfloat16, TFLOP/s | FP8, TFLOP/s | source |
|---|---|---|---|---|
{sources}
"""


def rows(path: str) -> list[dict[str, str]]:
    with (RESULTS / path).open(newline="") as file:
        return list(csv.DictReader(file))


def table(lines: Iterable[Sequence[object]]) -> str:
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def number(value: float | None, digits: int = 3) -> str:
    """With so many significant digits; "not known" for None."""
    if value is None:
        return "not known"
    return f"{value:,.0f}" if value >= 10 ** (digits - 1) else f"{value:#.{digits}g}".rstrip(".")


def longest(card: Card, weights: str, cache: str) -> str:
    if cache not in plan.caches(card):
        return "refused"
    tokens = plan.longest_context(CONFIG, card, Load(0, 1, plan.LEAST_CHUNK_TOKENS, weights, cache))
    return f"{tokens:,}" if tokens else "does not fit"


def card_lines() -> Iterable[Sequence[object]]:
    for card in data.CARDS:
        times = "measured" if card.name in MEASURED else "computed" if card.bandwidth_gb_per_s else "not known"
        if card.name in PUBLISHED:
            times += "; published by OpenBMB"
        kernels = "measured" if card.name in MEASURED else "compiled, not run"
        major, minor = card.capability
        contexts = longest(card, "bf16", "bf16"), longest(card, "fp8", "bf16"), longest(card, "fp8", "fp8")
        yield card.name, f"{card.memory_mib:,}", f"{major}.{minor}", *contexts, times, kernels


def memory_lines() -> Iterable[Sequence[object]]:
    for row in rows("serving/side_by_side.csv"):
        weights = {"plugin": "bf16", "plugin-fp8": "fp8"}.get(row["engine"])
        if weights and row["outcome"] == "measured":
            tokens = int(row["prompt_tokens"])
            longest_tokens = max(
                int(other["pool_tokens"])
                for other in rows("serving/side_by_side.csv")
                if other["engine"] == row["engine"]
            )
            load = Load(longest_tokens, 2, 8192, weights, prefix_cache=False, pool_tokens=tokens)
            computed = sum(memory_bytes(CONFIG, load).values()) / MIB
            found = float(row["needed_memory_mib"])
            yield f"{tokens:,}", weights, f"{computed:,.0f}", f"{found:,.0f}", f"{computed / found - 1:+.1%}"


def latest(card: str) -> dict[int, dict[str, str]]:
    """The last measured row of single requests by prompt tokens."""
    path, engine = MEASURED[card]
    found = [row for row in rows(path) if row["engine"] == engine and row.get("requests", "1") == "1" and row["ttft_s"]]
    return {int(row["prompt_tokens"]): row for row in found if data.find(card).reported in row["gpu"]}


def measured_lines() -> Iterable[Sequence[object]]:
    for name in MEASURED:
        card = data.find(name)
        for tokens, row in sorted(latest(name).items()):
            first, each = (
                speed.first_token_s(CONFIG, card, tokens, "bf16"),
                speed.decode_ms(CONFIG, card, tokens, "bf16"),
            )
            found = float(row["ttft_s"]), float(row["decode_ms_per_token"])
            assert first and each
            cells = number(first), number(found[0]), f"{found[0] / first:.2f}"
            yield name, f"{tokens:,}", *cells, number(each), number(found[1]), f"{found[1] / each:.2f}"


def floor_lines() -> Iterable[Sequence[object]]:
    for card in data.CARDS:
        first = (number(speed.first_token_s(CONFIG, card, tokens, "bf16")) for tokens in LENGTHS)
        fp8 = number(speed.first_token_s(CONFIG, card, 2**20, "fp8")) if card.fp8_tflops else "no FP8 arithmetic"
        if card.bandwidth_gb_per_s is None:
            fp8 = "not known"
        each = (number(speed.decode_ms(CONFIG, card, 2**20, weights)) for weights in ("bf16", "fp8"))
        yield card.name, *first, fp8, *each


def published_lines() -> Iterable[Sequence[object]]:
    ratio = speed.HOPPER_RATIO["prefill", "bf16"]
    for name, seconds in PUBLISHED.items():
        floors = [speed.first_token_s(CONFIG, data.find(name), tokens, "bf16") for tokens in LENGTHS]
        yield name, "published", *(seconds[length] for length in LENGTHS.values())
        yield "", "floor, computed", *(number(floor) for floor in floors)
        yield "", "as an H200, computed", *(number(floor and floor * ratio) for floor in floors)


def path_lines() -> Iterable[Sequence[object]]:
    for name, path in targets.PATHS.items():
        states = ("yes" if one in path.chosen else "can" if one in path.possible else "no" for one in targets.LIMITS)
        yield PATH_NAMES[name], *states, path.reason


def choice_lines() -> str:
    lines = []
    for choice in targets.CHOICES:
        options = ", ".join(f"`{name}={value}`" for name, value in choice.options.items())
        where = ", ".join(dotted(one) for one in choice.capabilities)
        lines.append(f"* `{choice.kernel}` on {where}: {options}. {choice.reason.capitalize()}.")
    return "\n".join(lines)


def compiled_lines(compiled: list[dict[str, str]]) -> Iterable[Sequence[object]]:
    for capability, limits in targets.LIMITS.items():
        found = [row for row in compiled if row["capability"] == dotted(capability)]
        spilled = [int(row["spill_bytes"]) for row in found if int(row["spill_bytes"])]
        shared = max(int(row["shared_bytes"]) for row in found)
        of_limit = f"{shared:,} of {limits.program_shared_bytes:,}"
        yield dotted(capability), len(found), of_limit, len(spilled), max(spilled, default=0)


def dotted(capability: tuple[int, int]) -> str:
    return "{}.{}".format(*capability)


def page() -> str:
    """The page as Markdown."""
    compiled = rows("operators/registers.csv")
    card = data.find("RTX 5090")
    found = next(row for row in rows("serving/side_by_side.csv") if row["engine"] == "plugin")
    sizes = sum(memory_bytes(CONFIG, Load(2**20, 1, 4096)).values()) / MIB
    return TEXT.format(
        cards=table(card_lines()),
        fits=f"A request of 1,048,576 tokens in bfloat16 takes {sizes:,.0f} MiB of the {card.memory_mib:,} of an "
        f"{card.name}.",
        memory_surroundings=f"{found['date']}, driver {found['driver']}, SGLang {found['sglang']}, torch "
        f"{found['torch']}, chunks of 8,192 tokens, two running requests, no prefix cache, pages for the prompt alone",
        memory=table(memory_lines()),
        measured_times=table(measured_lines()),
        lengths=" | ".join(LENGTHS.values()),
        dashes="|".join(["---"] * len(LENGTHS)),
        floors=table(floor_lines()),
        ratio=speed.HOPPER_RATIO["prefill", "bf16"],
        published=table(published_lines()),
        capabilities=" | ".join(map(dotted, targets.LIMITS)),
        capability_dashes="|".join(["---"] * len(targets.LIMITS)),
        paths=table(path_lines()),
        choices=choice_lines(),
        compiled=table(compiled_lines(compiled)),
        triton=", ".join(sorted({row["triton"] for row in compiled})),
        sources=table(
            (one.name, *map(number_or_none, (one.bandwidth_gb_per_s, one.bfloat16_tflops, one.fp8_tflops)), one.source)
            for one in data.CARDS
        ),
    )


def number_or_none(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


if __name__ == "__main__":
    PAGE.write_text(page())
