"""Time of every operator on a GPU beside its floor and the libraries that could serve in its place, as CSV rows.

    python -m benchmarks.operators.run --output benchmarks/results/operators/run.csv

Released sizes, bfloat16, random inputs, one layer. What the server replays from CUDA graphs is timed in graphs, prefill
as eager calls behind a busy device; medians over calls that rotate through inputs larger than the L2 cache. Outputs are
compared with the references before they are timed. The copy bandwidth and matmul rate of the same run come first.
A peer that is not installed is left out.

    --only decode,lightning_chunk      rows that contain one of these words
    --implementations triton,cuda      side by side, where an operator has them
    --tensor-parallel 4                the sparse layers as one of four GPUs runs them
    --dry-run                          tiny sizes on the CPU
"""

import argparse
import sys
import time
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks.operators.cases import float8, lightning, row_wise, sparse, speculation
from benchmarks.operators.harness.case import Case, Choice, Work, has
from benchmarks.operators.harness.inputs import Setting
from benchmarks.operators.harness.report import Results, Row, gb_per_s, verdicts
from benchmarks.operators.harness.sizes import RELEASED, TINY, Sizes
from benchmarks.operators.harness.timing import measure

Rows = dict[str, Choice | None]


def all_cases(sizes: Sizes) -> list[Case]:
    """Every case but the ceilings."""
    kinds = sparse, lightning, row_wise, speculation, float8
    return [case for kind in kinds for case in kind.cases(sizes)]


def rank_cases(sizes: Sizes) -> list[Case]:
    """Cases for the sizes of a tensor-parallel rank, without targets, which are set for one GPU: those of the sparse
    layers. The others' sizes do not follow from the heads alone."""
    return [replace(case, targets=()) for case in sparse.cases(sizes)]


def main() -> int:
    """Command line; returns 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="CSV file; rows are appended")
    parser.add_argument("--only", type=words, default=[], help="rows whose line contains one of these words")
    parser.add_argument("--implementations", type=words, default=[], help="default: the ones that serve")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="GPUs; the sparse layers of one of them")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU: shapes and formulas, no speed")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("no GPU found; --dry-run needs none")
    sizes, device = (TINY, torch.device("cpu")) if options.dry_run else (RELEASED, torch.device("cuda"))
    try:
        rank = sizes.of_rank(options.tensor_parallel)
        setting = Setting(rank, device, cache_bytes(device))
        cases = all_cases(sizes) if rank == sizes else rank_cases(rank)
        chosen = choose(cases, options.only, options.implementations, setting)
        results = Results(options.output, device, options.tensor_parallel)
    except ValueError as error:
        parser.error(str(error))
    run = Run(setting, results)
    run.all(chosen)
    print("\n".join(["", *verdicts(run.rows)]))
    if run.failed:
        print(f"failed: {'; '.join(run.failed)}", file=sys.stderr)
    return 1 if run.failed else 0


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def cache_bytes(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0


def choose(cases: list[Case], only: list[str], names: list[str], setting: Setting) -> list[tuple[Case, Rows]]:
    """The rows whose titles contain one of the words; all without words. ValueError for what leaves nothing."""
    for name in names:
        if not any(has(operator, name) for case in cases for operator in case.operators):
            raise ValueError(f"--implementations: no operator has {name!r}")
    rows = [(case, case.rows(names, setting)) for case in cases]
    titles = [case.title(name) for case, found in rows for name in found]
    for word in only:
        if not any(word in title for title in titles):
            raise ValueError("\n".join([f"--only: no row has {word!r}; allowed are parts of:", *titles]))
    wanted = {title for title in titles if not only or any(word in title for word in only)}
    kept = [(case, {name: how for name, how in found.items() if case.title(name) in wanted}) for case, found in rows]
    return [(case, found) for case, found in kept if found]


@dataclass
class Run:
    """Measures cases and keeps their rows. A case that fails is reported, and the others go on."""

    setting: Setting
    results: Results
    rows: list[Row] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    copy_gb_per_s: float = 0.0

    def all(self, chosen: list[tuple[Case, Rows]]) -> None:
        """The ceilings, then the chosen rows."""
        start = time.perf_counter()
        for ceiling in row_wise.ceilings(self.setting.sizes):
            self.case(ceiling, ceiling.rows([], self.setting))
        if not self.copy_gb_per_s:
            raise RuntimeError("the copy bandwidth, to which all rows refer, was not measured")
        for case, rows in chosen:
            self.case(case, rows)
            print(f"  {time.perf_counter() - start:.0f} s", flush=True)

    def case(self, case: Case, rows: Rows) -> None:
        try:
            if self.setting.device.type == "cuda":
                torch.cuda.empty_cache()  # of the pools of the case before
            torch.manual_seed(0)  # the same inputs whichever cases are chosen
            work = case.build(self.setting)
        except Exception:  # time on a GPU is too scarce to lose the other cases
            self.fail(f"{case.operator} {case.name}")
            return
        for name, choice in rows.items():
            try:
                self.row(case, work, name, choice)
            except Exception:
                self.fail(case.title(name))

    def row(self, case: Case, work: Work, name: str, choice: Choice | None) -> None:
        device = self.setting.device
        if choice is None:
            try:
                calls = work.peers[name]()
            except ImportError as error:
                print(f"{case.title(name)} left out: {error}", flush=True)
                return
        else:
            work.check(choice)
            calls = work.calls(choice)
        timing = measure(calls, case.captured, device)
        if case.operator == "copy":
            self.copy_gb_per_s = gb_per_s(work.floor, timing)
        row = Row(case, name, timing, work.floor, self.copy_gb_per_s)
        self.rows.append(row)
        self.results.append(row)
        print(row.line(), flush=True)

    def fail(self, title: str) -> None:
        self.failed.append(title)
        print(f"{title} failed", file=sys.stderr)
        traceback.print_exc()


if __name__ == "__main__":
    sys.exit(main())
