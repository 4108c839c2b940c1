"""What the processes of a server import when they start: CPU seconds and modules, with the plugin and without, as CSV.

    python -m benchmarks.serving.imports --output benchmarks/results/serving/imports.csv

Needs no GPU and no model. Each process is imitated up to where it would begin to work: SGLang's module for it, its
plugins, and in the frontend the HTTP server. Pairs with and without the plugin follow each other, each in a process of
its own; CPU seconds, because other load on the machine does not count among them. Rows are appended.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import results_file
from benchmarks.common.options import add_commit, check_least

COLUMNS = "date", "process", "plugin", "repetition", "cpu_s", "modules", "own_modules", "largest", "sglang", "commit"
# What a process imports before it loads its plugins, and after that.
PROCESSES = {
    "frontend": ("sglang.launch_server", "sglang.srt.entrypoints.http_server"),
    "scheduler": ("sglang.srt.managers.scheduler", "sglang.srt.managers.scheduler"),
    "detokenizer": ("sglang.srt.managers.detokenizer_manager", "sglang.srt.managers.detokenizer_manager"),
}
OWN = "sala_sglang", "sala_kernels"
CODE = """
import collections, importlib, json, sys, time
importlib.import_module(sys.argv[1])
from sglang.srt.plugins import load_plugins
load_plugins()
importlib.import_module(sys.argv[2])
packages = collections.Counter(name.split(".")[0] for name in sys.modules)
print("RESULT" + json.dumps({"cpu_s": time.process_time(), "modules": len(sys.modules), "packages": packages}))
"""
SHOWN = 6  # packages with the most modules


def measure(process: str, plugin: bool) -> dict:
    """CPU seconds, modules, and modules by package of one imitated process."""
    environment = os.environ | {"SGLANG_PLUGINS": "sala" if plugin else "none"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *PROCESSES[process]], env=environment, capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not lines:
        raise RuntimeError(f"{process} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(lines[0].removeprefix("RESULT"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3, help="pairs per process (default: 3)")
    add_commit(parser)
    parser.add_argument("--output", type=Path, required=True, help="CSV file; rows are appended")
    options = parser.parse_args()
    check_least(parser, options, {"repetitions": 1})
    for repetition in range(options.repetitions):
        for process in PROCESSES:
            for plugin in (False, True):
                found = measure(process, plugin)
                packages = sorted(found["packages"].items(), key=lambda item: -item[1])
                row = {
                    "date": time.strftime("%Y-%m-%d"),
                    "process": process,
                    "plugin": "on" if plugin else "off",
                    "repetition": repetition,
                    "cpu_s": round(found["cpu_s"], 2),
                    "modules": found["modules"],
                    "own_modules": sum(count for name, count in packages if name in OWN),
                    "largest": " ".join(f"{name} {count}" for name, count in packages[:SHOWN]),
                    "sglang": importlib.metadata.version("sglang"),
                    "commit": options.commit,
                }
                results_file.append(options.output, row, COLUMNS)
                print(", ".join(f"{name}={value}" for name, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
