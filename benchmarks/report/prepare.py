"""What tables and plots show that does not stand in the result files as it is: rows made of rows."""

import statistics
from collections.abc import Callable
from datetime import datetime

from benchmarks.operators import crossover
from benchmarks.operators.harness.sizes import RELEASED
from benchmarks.operators.run import all_cases
from benchmarks.report.where import Row
from benchmarks.serving.side_by_side import ratios

BUSY_WATTS = 450
POWER_CAP = 0x4  # bit of NVML's reasons for lower clocks
MIDDLE_DEPTHS = 0.25, 0.75
LIBRARIES = "torch", "flashinfer", "fla"


def clocks(rows: list[Row]) -> list[Row]:
    """Medians of clock and power, and how often power held the clock down, of the samples of a busy GPU."""
    busy = [row for row in samples(rows) if float(row["power_w"]) > BUSY_WATTS]
    if not busy:
        return []
    capped = [row for row in busy if int(row["throttle_reasons"], 16) & POWER_CAP]
    figures = {
        "SM clock, MHz": statistics.median(float(row["sm_clock_mhz"]) for row in busy),
        "power, W": statistics.median(float(row["power_w"]) for row in busy),
        "samples with the clock held down by the power cap, %": 100 * len(capped) / len(busy),
        "samples": len(busy),
    }
    return [{"what": what, "value": str(value)} for what, value in figures.items()]


def samples(rows: list[Row]) -> list[Row]:
    """Samples of nvidia-smi with numbers instead of "1515 MHz", and the seconds since the first."""
    times = [datetime.strptime(row["time"], "%Y/%m/%d %H:%M:%S.%f") for row in rows]
    return [
        row
        | {
            "seconds": str((time - times[0]).total_seconds()),
            "sm_clock_mhz": row["sm_clock"].split()[0],
            "power_w": row["power"].split()[0],
        }
        for row, time in zip(rows, times, strict=True)
    ]


def middle_depths(rows: list[Row]) -> list[Row]:
    """The share found in percent, and again where no block is chosen for its place."""
    least, most = MIDDLE_DEPTHS
    return [
        row
        | {"found": str(100 * float(row["found"]))}
        | ({"found_between": str(100 * float(row["found"]))} if least <= float(row["depth"]) <= most else {})
        for row in rows
    ]


def by_engine(rows: list[Row]) -> list[Row]:
    """The plugin first, then SGLang's own model, then other models, whichever was measured first."""
    order = "plugin", "stock"
    return sorted(rows, key=lambda row: ([row["engine"].startswith(start) for start in order] + [True]).index(True))


def times_faster(rows: list[Row]) -> list[Row]:
    """How many times faster every engine is than the baselines, by GPU and prompt length."""
    found: list[Row] = []
    for gpu in dict.fromkeys(row.get("gpu", "") for row in rows):
        here = [row for row in rows if row.get("gpu", "") == gpu]
        found += [{"gpu": gpu} | {name: str(value) for name, value in ratio.items()} for ratio in ratios(here)]
    return found


def strongest(start: str) -> Callable[[list[Row]], list[Row]]:
    """Of engines whose names begin with ``start``, which differ in their attention, the fastest under that name."""

    def chosen(rows: list[Row]) -> list[Row]:
        others = [row for row in by_engine(rows) if not row["engine"].startswith(start)]
        best: dict[tuple[str, str], Row] = {}
        for row in rows:
            place = row.get("gpu", ""), row["prompt_tokens"]
            if row["engine"].startswith(start):
                best[place] = fastest(best.get(place, row), row) | {"engine": start}
        return others + list(best.values())

    return chosen


def fastest(one: Row, other: Row) -> Row:
    """Both figures at their lowest, as the baseline of each comparison."""
    lower = {name: min(one[name], other[name], key=float) for name in ("ttft_s", "decode_ms_per_token")}
    return one | lower


def percent(column: str) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [row | {column: str(100 * float(row[column]))} for row in rows]


def aims(rows: list[Row]) -> list[Row]:
    """What the cases of ``benchmarks.operators.run`` aim at, beside what was measured."""
    texts = {
        (case.operator, case.name): ", ".join(f"{target.value:g} {target.unit}" for target in case.targets)
        for case in all_cases(RELEASED)
    }
    return [row | {"aim": texts.get((row["operator"], row["case"]), "").replace("us", "µs")} for row in rows]


def beside_libraries(rows: list[Row]) -> list[Row]:
    """Every case that a library computed too, with the time of our own implementation in the same run."""
    own = {_run(row): row for row in rows if row["implementation"] not in LIBRARIES}
    pairs = [(row, own[_run(row)]) for row in rows if row["implementation"] in LIBRARIES and _run(row) in own]
    return [
        row | {"library": row["implementation"], "library_us": row["median_us"], "own_us": ours["median_us"]}
        for row, ours in pairs
    ]


def _run(row: Row) -> tuple[str, ...]:
    return tuple(row.get(column, "") for column in ("gpu", "operator", "case", "source", "date", "commit"))


def whole_layers(rows: list[Row]) -> list[Row]:
    """The parts of a sparse layer, and both together beside the dense one."""
    found = list(rows)
    for phase in dict.fromkeys(row["phase"] for row in rows):
        both = crossover.lines(rows, phase)["both"]
        same = [row for row in rows if row["phase"] == phase and row["part"] == crossover.SELECT]
        found += [row | {"part": "both", "median_us": str(1e3 * both[int(row["context"])])} for row in same]
    return found


def groups_of_steps(rows: list[Row]) -> list[Row]:
    """Groups of kernels in percent of a step, with idle time; without what is nothing but a sum."""
    groups = [row for row in rows if row["group"] != "busy"]
    whole: dict[tuple[str, str], float] = {}
    for row in groups:
        step = row["step"], row["context_tokens"]
        whole[step] = whole.get(step, 0.0) + float(row["ms_per_step"])
    return [
        row
        | {
            "step": f"{row['step']} at {int(row['context_tokens']):,}".replace(" of ", "\nof ").replace(
                " at ", "\nat "
            ),
            "ms_per_step": str(100 * float(row["ms_per_step"]) / whole[row["step"], row["context_tokens"]]),
        }
        for row in groups
    ]


def requests_of_tokens(rows: list[Row]) -> list[Row]:
    return [row | {"load": f"{int(row['requests'])} × {int(row['context_tokens']):,}"} for row in rows]


def short_cases(rows: list[Row]) -> list[Row]:
    """Operator and case in one name that fits beside a bar."""
    return [row | {"short": f"{row['operator']}, {row['case']}"} for row in rows]


def share_of_copy(rows: list[Row]) -> list[Row]:
    """What the memory bounds: decode steps, rows, and products of few rows."""
    return [row for row in short_cases(rows) if row["method"] == "graph"]


def rates(rows: list[Row]) -> list[Row]:
    """What the operations bound: chunks of a prefill."""
    return [row for row in short_cases(rows) if row["method"] == "events" and row.get("tflop_per_s")]


def at_most(most: int) -> Callable[[str], bool]:
    return lambda value: int(value) <= most


def used_adapters(rows: list[Row]) -> list[Row]:
    """The engine and how many adapters are in use in one name."""
    return [row | {"engine": f"{row['engine']},\n{row['adapters']} in use"} for row in rows]


def rank(number: str) -> str:
    return f"rank {number}"


def ranks_and_stages(rows: list[Row]) -> list[Row]:
    """Rows with ``size``, what the GPUs of a row do together."""
    names = {("1", "1"): "1 GPU"}
    for row in rows:
        tp, pp = row["tp"], row["pp"]
        parts = [f"{kind} {number}" for kind, number in (("TP", tp), ("PP", pp)) if number != "1"]
        names.setdefault((tp, pp), " × ".join(parts))
    return [row | {"size": names[row["tp"], row["pp"]]} for row in rows]
