"""Figures inside the text of the pages, by the names under which the templates ask for them.

Each is computed from the newest rows of a table; None where there are no rows that it needs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import prepare
from benchmarks.report.table import Table, shown
from benchmarks.report.tables import history, serving
from benchmarks.report.where import Row, Where, given, matches, one_of


@dataclass(frozen=True)
class Fact:
    """What ``compute`` says of the rows that ``table`` is made of."""

    table: Table
    compute: Callable[[list[Row]], str | None]

    def text(self, results: Path) -> str | None:
        return self.compute(self.table.chosen(results))


def times(column: str, ours: Where, theirs: Where) -> Callable[[list[Row]], str | None]:
    """How many times lower ``column`` is in ``ours``, at the longest prompt that both have."""

    def compute(rows: list[Row]) -> str | None:
        found = [
            {int(row["prompt_tokens"]): float(row[column]) for row in rows if matches(row, where | {column: given})}
            for where in (dict(ours), dict(theirs))
        ]
        both = found[0].keys() & found[1].keys()
        if not both:
            return None
        length = max(both)
        return f"{shown(found[1][length] / found[0][length], 2)} times at {length:,} tokens"

    return compute


def model_card(rows: list[Row]) -> str | None:
    """A line per engine: how many times faster than Qwen3-8B at the longest prompt that it was measured at."""
    found = [row for row in prepare.times_faster(rows) if row["baseline"] == "qwen3-8b"]
    if not found:
        return None
    longest = max(int(row["prompt_tokens"]) for row in found)
    lines = [
        f"* {row['engine']} at {longest:,} tokens: **{row['ttft_times']} times** sooner at the first token, "
        f"**{row['decode_times']} times** faster per further token"
        for row in found
        if int(row["prompt_tokens"]) == longest and {"ttft_times", "decode_times"} <= row.keys()
    ]
    return "\n".join(lines) or None


def cache_share(rows: list[Row]) -> str | None:
    """Throughput of prompts that share nothing with the prefix cache, in percent of that without."""
    shares = [row["compared_percent"] for row in rows if row["measured"] == "nothing shared, against off"]
    return shares[-1] if shares else None


def spread(before: str, after: str) -> Callable[[list[Row]], str | None]:
    """Lowest and highest share of the time of a case that a commit takes beside another."""

    def compute(rows: list[Row]) -> str | None:
        by_commit: dict[str, dict[tuple[str, str, str], list[float]]] = {before: {}, after: {}}
        for row in rows:
            place = row["operator"], row["case"], row["implementation"]
            by_commit[row["commit"]].setdefault(place, []).append(float(row["median_us"]))
        shares = [by_commit[after][place][0] / times[0] for place, times in by_commit[before].items()]
        return f"{min(shares):.2f} to {max(shares):.2f} times" if shares else None

    return compute


PLUGIN, STOCK = {"engine": one_of("plugin")}, {"engine": one_of("stock-dense")}
USUAL = {"weights": one_of("random weights, of usual size")}
ONE_STAGE = {"pp": one_of("1")}
FACTS = {
    "model card": Fact(serving.SIDE_BY_SIDE, model_card),
    "first token beside stock": Fact(serving.SPEED, times("ttft_s", PLUGIN | USUAL, STOCK | USUAL)),
    "further tokens beside stock": Fact(serving.SPEED, times("decode_ms_per_token", PLUGIN | USUAL, STOCK | USUAL)),
    "second question": Fact(
        serving.PREFIX_CACHE,
        times("ttft_s", {"measured": one_of("second question")}, {"measured": one_of("first question")}),
    ),
    "throughput with the cache": Fact(serving.PREFIX_CACHE, cache_share),
    "two GPUs": Fact(serving.RANKS, times("ttft_s", ONE_STAGE | {"tp": one_of("2")}, ONE_STAGE | {"tp": one_of("1")})),
    "regrouped operators": Fact(history.REGROUPED, spread("a0e3fef", "1120ddb")),
}
