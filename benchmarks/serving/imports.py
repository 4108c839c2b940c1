"""What the processes of a server import when they start: CPU seconds and modules, with the plugin and without, as CSV.

    python -m benchmarks.serving.imports --output benchmarks/results/serving/imports.csv

Needs no GPU and no model. Each process is imitated up to where it would begin to work: SGLang's module for it, its
plugins, then the HTTP server in the frontend, which is the launcher too, and in the scheduler what runs a model and
SGLang's registry of models. Pairs with and without the plugin follow each other, each in a process of its own; CPU
seconds, because other load on the machine does not count among them. Python notes the time of every import
(``-X importtime``), which takes some itself: ``own_s`` are the seconds of this project's modules, and ``slowest`` those
of the packages that take most, without what they import. Rows are appended.
"""

import argparse
import collections
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import results_file
from benchmarks.common.options import add_commit, check_least

COLUMNS = (
    *("date", "process", "plugin", "repetition", "cpu_s", "modules", "own_modules", "own_s", "slowest", "sglang"),
    "commit",
)
# What a process imports before it loads its plugins, and after that.
PROCESSES = {
    "frontend": ("sglang.launch_server", "sglang.srt.entrypoints.http_server"),
    "scheduler": (
        "sglang.srt.managers.scheduler",
        "sglang.srt.model_executor.model_runner",
        "sglang.srt.models.registry",
    ),
    "detokenizer": ("sglang.srt.managers.detokenizer_manager",),
}
OWN = "sala_sglang", "sala_kernels"
CODE = """
import importlib, json, sys, time
importlib.import_module(sys.argv[1])
from sglang.srt.plugins import load_plugins
load_plugins()
for name in sys.argv[2:]:
    importlib.import_module(name)
print("RESULT" + json.dumps({"cpu_s": time.process_time(), "modules": list(sys.modules)}))
"""
IMPORT = re.compile(r"^import time: +(\d+) \| +\d+ \| +([\w.]+)$", re.MULTILINE)  # microseconds of a module itself
SHOWN = 8  # packages that take most


def measure(process: str, plugin: bool) -> dict:
    """CPU seconds, modules, and seconds by package of one imitated process."""
    environment = os.environ | {"SGLANG_PLUGINS": "sala" if plugin else "none"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", CODE, *PROCESSES[process]],
        env=environment,
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not lines:
        raise RuntimeError(f"{process} ended with {done.returncode}:\n{done.stderr}")
    seconds: dict[str, float] = collections.defaultdict(float)
    for microseconds, module in IMPORT.findall(done.stderr):
        seconds[module.split(".")[0]] += int(microseconds) / 1e6
    return json.loads(lines[0].removeprefix("RESULT")) | {"seconds": seconds}


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
                seconds = found["seconds"]
                row = {
                    "date": time.strftime("%Y-%m-%d"),
                    "process": process,
                    "plugin": "on" if plugin else "off",
                    "repetition": repetition,
                    "cpu_s": round(found["cpu_s"], 2),
                    "modules": len(found["modules"]),
                    "own_modules": sum(name.split(".")[0] in OWN for name in found["modules"]),
                    "own_s": round(sum(seconds.get(name, 0) for name in OWN), 2),
                    "slowest": " ".join(
                        f"{name} {count:.1f}"
                        for name, count in sorted(seconds.items(), key=lambda item: -item[1])[:SHOWN]
                    ),
                    "sglang": importlib.metadata.version("sglang"),
                    "commit": options.commit,
                }
                results_file.append(options.output, row, COLUMNS)
                print(", ".join(f"{name}={value}" for name, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
