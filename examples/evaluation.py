"""How much a server finds in long prompts: ``python examples/evaluation.py [URL [OUT [LENGTHS]]]``.

Needs a running server (``scripts/launch_server.sh``). Runs ``sala-sglang eval`` on three of its tasks, which writes a
heat map to OUT/heat_map.png, and prints the share of numbers found for each length.
"""

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

url, out, lengths = [*sys.argv[1:], *("http://127.0.0.1:31111", "result", "1K,2K,4K")[len(sys.argv) - 1 :]]
choice = ["--tasks", "passkey,key-value,multi-query", "--depths", "3", "--samples", "1"]
command = [sys.executable, "-m", "sala_sglang.cli", "eval", "--base-url", url, "--out", out, "--lengths", lengths]
subprocess.run([*command, *choice], check=True)

cells = json.loads((Path(out) / "result.json").read_text())["cells"]
for tokens in sorted({cell["length"] for cell in cells}):
    scores = [cell["score"] for cell in cells if cell["length"] == tokens and cell["served"]]
    print(f"{tokens} tokens: {mean(scores) if scores else 0:.0%} found")
