"""What ``sala-sglang eval`` does with its arguments, and its exit codes."""

import argparse
import sys
from pathlib import Path

from transformers import AutoTokenizer

from sala_sglang.evaluation import heat_map
from sala_sglang.evaluation import run as evaluation
from sala_sglang.evaluation.answers import Answers, Unusable
from sala_sglang.evaluation.client import Client, Unreachable
from sala_sglang.evaluation.samples import SampleMaker

ANSWERS = "answers.jsonl"
SERVED, NOTHING_SERVED, IMPOSSIBLE, NOT_FINISHED, INTERRUPTED = 0, 1, 2, 3, 130


def run(options: argparse.Namespace) -> int:
    """Evaluate and return the exit code.

    0: something was served. 1: everything was refused. 2: impossible arguments, or no server there. 3: the server went
    away, and --resume goes on. 130: so does it after Ctrl-C.
    """
    steps = max(1, options.depths - 1)
    depths = tuple(round(i / steps, 4) for i in range(options.depths))
    plan = evaluation.Plan(options.tasks, options.lengths, depths, options.samples, options.seed, options.concurrency)
    try:
        _check_directory(options.out, options.resume)
        client = Client(options.base_url, options.model)
        tokenizer_path = options.tokenizer or client.tokenizer_path()
        maker = SampleMaker(AutoTokenizer.from_pretrained(tokenizer_path))
        options.out.mkdir(parents=True, exist_ok=True)
        answers = Answers(options.out / ANSWERS, evaluation.about(client, tokenizer_path, plan))
    except (Unreachable, Unusable) as error:
        _complain(str(error))
        return IMPOSSIBLE
    with answers:
        try:
            cells = evaluation.evaluate(client, maker, plan, answers)
        except (Unreachable, KeyboardInterrupt) as error:
            gone = isinstance(error, Unreachable)
            kept = f"{len(answers.kept)} of {len(plan.jobs())} answers are in {options.out / ANSWERS}"
            _complain(f"{error if gone else 'interrupted'}; {kept}, the same command with --resume goes on")
            return NOT_FINISHED if gone else INTERRUPTED
    evaluation.write_result(options.out / "result.json", client, plan, answers, cells)
    heat_map.draw(options.out / "heat_map.png", client.model, cells)
    print("\n".join(evaluation.table(cells)))
    for line in (*evaluation.refusals(answers.kept), *evaluation.miscounts(answers.kept, tokenizer_path)):
        print(line)
    print(f"Wrote result.json and heat_map.png to {options.out}")
    return SERVED if any(cell.served for cell in cells) else NOTHING_SERVED


def _check_directory(path: Path, resume: bool) -> None:
    """Raises Unusable unless ``path`` has answers to go on from, or is to be created."""
    if resume and not (path / ANSWERS).is_file():
        raise Unusable(f"--resume: {str(path)!r} has no {ANSWERS}; allowed: the --out of an evaluation")
    if not resume and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise Unusable(f"--out: {str(path)!r} exists; allowed: a new or an empty directory, or one to --resume")


def _complain(message: str) -> None:
    print(f"sala-sglang eval: {message}", file=sys.stderr)
