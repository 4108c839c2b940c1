"""What a served model finds with selected blocks, with full attention, and with random blocks, as CSV and heat maps.

    python -m benchmarks.evaluation.retrieval --lengths 1K,2K,4K,8K,16K --work DIR \\
        --output benchmarks/results/evaluation/retrieval.csv

Starts a server per kind of attention, one after the other, on the GPU if there is one, and lets ``sala-sglang eval``
ask it for every length. DIR keeps the answers of each length; what is there already is not asked again, so a run that
was ended can go on. Beside the CSV file a heat map of each kind is written.
"""

import argparse
import csv
import json
import platform
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import torch

from sala_sglang import cli
from sala_sglang.environment import FORCE_DENSE
from sala_sglang.evaluation import heat_map
from sala_sglang.evaluation.command import ANSWERS
from sala_sglang.evaluation.run import Cell
from testing.server import Server

ROOT = Path(__file__).parents[2]

# Kind of attention: (environment, program in place of SGLang's launcher)
KINDS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "selected": ({}, ("-m", "sglang.launch_server")),
    "random": ({}, ("-m", "testing.random_blocks")),
    "dense": ({FORCE_DENSE: "1"}, ("-m", "sglang.launch_server")),
}
DEPTHS = "5"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "checkpoints" / "sala-tiny")
    parser.add_argument("--lengths", required=True, help="tokens of prompt and answer, as sala-sglang eval takes them")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--samples", default="1", help="prompts per task, length and depth (default: 1)")
    parser.add_argument("--concurrency", default="1", help="prompts at once (default: 1)")
    parser.add_argument("--work", type=Path, required=True, help="directory for the results of single lengths")
    parser.add_argument("--output", type=Path, required=True, help="CSV file; written anew")
    parser.add_argument("server_arguments", nargs="*", help="further arguments of the server, after --")
    options = parser.parse_args()
    for kind in options.kinds:
        ask_missing(kind, options)
    cells = {kind: [cell for found in results(kind, options) for cell in found["cells"]] for kind in options.kinds}
    write_csv(cells, options)
    for kind, found in cells.items():
        path = options.output.with_name(f"{options.output.stem}_{kind}.png")
        heat_map.draw(path, f"{options.model.name}, {kind} attention", [Cell(**cell) for cell in found])


def folder(kind: str, length: str, options: argparse.Namespace) -> Path:
    return options.work / f"{kind}-{length}"


def ask_missing(kind: str, options: argparse.Namespace) -> None:
    """Ask a server of this kind for the lengths that have no result yet; none is started where all have one."""
    lengths = options.lengths.split(",")
    missing = [length for length in lengths if not (folder(kind, length, options) / "result.json").exists()]
    environment, program = KINDS[kind]
    server = Server(options.model, *options.server_arguments, environment=environment, program=program)
    with server if missing else nullcontext():
        for length in missing:
            out = folder(kind, length, options)
            choice = f"--lengths {length} --depths {DEPTHS} --samples {options.samples}"
            choice += f" --concurrency {options.concurrency} --base-url {server.base_url}"
            choice += " --resume" * (out / ANSWERS).exists()
            if cli.main(["eval", "--out", str(out), *choice.split()]):
                raise SystemExit(f"the evaluation of {kind} attention at {length} failed")


def results(kind: str, options: argparse.Namespace) -> list[dict]:
    paths = (folder(kind, length, options) / "result.json" for length in options.lengths.split(","))
    return [json.loads(path.read_text()) for path in paths]


def write_csv(cells: dict[str, list[dict]], options: argparse.Namespace) -> None:
    about = {
        "model": options.model.name,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "torch": torch.__version__,
        "sglang": version("sglang"),
        "python": platform.python_version(),
        "options": " ".join(options.server_arguments),
    }
    with options.output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("attention", "task", "tokens", "depth", "found", "samples", *about))
        for kind, found in cells.items():
            for one in found:
                row = (one["task"], one["length"], one["depth"], one["score"], one["served"])
                writer.writerow((kind, *row, *about.values()))


if __name__ == "__main__":
    main()
