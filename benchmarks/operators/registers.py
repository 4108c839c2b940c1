"""Registers, spills and shared memory of every kernel as compiled for every generation of GPUs, as CSV. Needs no GPU.

    python -m benchmarks.operators.registers --output benchmarks/results/operators/registers.csv
    python -m benchmarks.operators.registers --check benchmarks/results/operators/registers.csv

Each operator is called as a server with the released model would call it (ahead/calls.py), and what it would launch on
a GPU of each compute capability is compiled, in bfloat16, in about a quarter of an hour on one core. Spills are what
ptxas reports; its stack frame also holds the table by which libdevice reduces the arguments of sine and cosine.
``per_sm`` counts the programs that fit on a multiprocessor. ``chosen`` is "measured" for Hopper, whose options are
measured on GPUs; "as on 9.0" where they hold elsewhere; and "derived" where sala_kernels/targets.py has others.
``--output`` writes the file anew. ``--check`` compiles an entry of every kernel, and fails where the file is not that
of the code.
"""

import argparse
import csv
import sys
from pathlib import Path

from sala_kernels.targets import LIMITS

from benchmarks.common import results_file
from benchmarks.operators.ahead.check import check
from benchmarks.operators.ahead.entries import COLUMNS, capability_name, entries, row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--output", type=Path, help="CSV file to write")
    target.add_argument("--check", type=Path, help="CSV file to compare with the code")
    parser.add_argument("--only", default="", help="operators whose name contains this")
    names = {capability_name(capability): capability for capability in LIMITS}
    parser.add_argument("--capability", choices=names, nargs="*", default=list(names), help="default: all")
    options = parser.parse_args()
    if options.check:
        wrong = check(results_file.read(options.check))
        print("\n".join(wrong) or "The table is that of the code.")
        return 1 if wrong else 0
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for name in options.capability:
            for entry in entries(names[name], only=options.only):
                writer.writerow(found := row(entry))
                file.flush()
                print(" ".join(str(found[column]) for column in COLUMNS), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
