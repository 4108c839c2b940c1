"""RULER as lm-eval makes and scores it, asked of any server with the OpenAI API: a row per task and length.

    python -m benchmarks.evaluation.ruler --base-url http://127.0.0.1:31111 --lengths 4096,8192 \\
        --output benchmarks/results/evaluation/ruler.csv

What the file has already is not asked again, so a run that was ended goes on with the same command. Needs
``pip install 'sala-sglang[ruler]'``. docs/guides/ruler.md says what the rows mean, and what each of the other
``--settings`` does to them. The tasks that are asked unless ``--tasks`` names others need no network. Tasks of
``sala-sglang eval`` can stand beside them.
"""

import argparse
import json
import tempfile
import time
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common import results_file
from benchmarks.common.options import add_commit, check_least
from benchmarks.evaluation.ruler_settings import OWN, RECIPE, SETTINGS, Found
from sala_sglang import cli
from sala_sglang.evaluation import samples
from sala_sglang.evaluation.client import CONNECT_SECONDS, Client, Unreachable

GENERATED = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "ruler_vt", "ruler_cwe", "ruler_fwe")
ESSAYS = ("niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery")
DOCUMENTS = ("ruler_qa_squad", "ruler_qa_hotpot")
TASKS = (*GENERATED, *ESSAYS, *DOCUMENTS, *OWN, *samples.TASKS)
EVAL_DEPTHS = 5  # of the tasks that ``sala-sglang eval`` asks itself
MOST_SAMPLES = 500  # what lm-eval makes of each task and length
# Beside a task's length a prompt has the begin of its answer and the chat template, and with ruler_fwe the answer.
BEYOND_LENGTH = 256
KEY = ("model", "harness", "settings", "task", "length", "samples")
MEASURED = ("date", *KEY, *Found.__annotations__, "seconds")
VERSIONS = ("lm_eval", "transformers", "tokenizers")
COLUMNS = (*MEASURED, *results_file.SURROUNDINGS, *VERSIONS)
LM_EVAL, EVAL = "lm-eval", "sala-sglang eval"


def main(words: list[str] | None = None) -> None:
    options = parse_arguments(words)
    harness = load_harness()
    try:
        client = Client(options.base_url, options.model)
        tokenizer = options.tokenizer or client.tokenizer_path()
    except Unreachable as error:
        raise SystemExit(str(error)) from error
    check_context(client, options.lengths)
    known = {tuple(row[name] for name in KEY) for row in results_file.read(options.output)}
    cells = [(client.model, *cell, str(options.samples)) for cell in plan(options)]
    missing = [cell for cell in cells if cell not in known]
    about = surroundings(client, options)
    with tqdm(total=len(cells), initial=len(cells) - len(missing), unit="cell", desc=client.model) as bar:
        for cell in missing:
            _, asked_by, settings, task, length, _ = cell
            bar.set_postfix_str(f"{settings}, {task}, {length} tokens")
            start = time.perf_counter()
            try:
                if asked_by == EVAL:
                    found = ask_eval(client, tokenizer, task, length, options)
                else:
                    found = harness.ask(client, tokenizer, SETTINGS[settings], task, int(length), options)
            except harness.Impossible as error:
                tqdm.write(f"{task} at {length} tokens is left out: {error}")
            except (Unreachable, *harness.Unanswered, KeyboardInterrupt) as error:
                done = f"{options.output} has the rows so far, the same command goes on"
                raise SystemExit(f"{task} at {length} tokens: {error!r}; {done}") from error
            else:
                row = about | dict(zip(KEY, cell, strict=True)) | vars(found)
                results_file.record(options.output, row | {"seconds": round(time.perf_counter() - start, 1)}, COLUMNS)
            bar.update()


def plan(options: argparse.Namespace) -> list[tuple[str, str, str, str]]:
    """Who asks, with which settings, which task, at which length; what ``sala-sglang eval`` asks has one setting."""
    cells = []
    for settings in options.settings:
        for length in map(str, options.lengths):
            for task in options.tasks:
                own = task in samples.TASKS
                cells.append((EVAL, "", task, length) if own else (LM_EVAL, settings, task, length))
    return list(dict.fromkeys(cells))


def ask_eval(client: Client, tokenizer: str, task: str, length: str, options: argparse.Namespace) -> Found:
    """What ``sala-sglang eval`` finds of one of its own tasks. Raises Unreachable where it does not finish."""
    with tempfile.TemporaryDirectory() as folder:
        place = ["--base-url", client.root, "--model", client.model, "--tokenizer", tokenizer, "--out", folder]
        choice = f"--tasks {task} --lengths {length} --depths {EVAL_DEPTHS} --samples {options.samples // EVAL_DEPTHS}"
        if cli.main(["eval", *place, *choice.split(), "--concurrency", str(options.concurrency)]):
            raise Unreachable(f"sala-sglang eval found nothing of {task} at {length} tokens")
        cells = json.loads((Path(folder) / "result.json").read_text())["cells"]
    served = sum(cell["served"] for cell in cells)
    return Found(round(sum(cell["score"] * cell["served"] for cell in cells if cell["served"]) / served, 4), served)


def parse_arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", required=True, help="the server, with /v1 at the end or without")
    parser.add_argument("--model", help="model to ask for (default: the first one that the server lists)")
    parser.add_argument("--tokenizer", help="of the served model; default: what an SGLang server names")
    parser.add_argument("--lengths", type=names, required=True, help="tokens of prompt and answer, such as 4096,8192")
    parser.add_argument("--tasks", type=names, default=GENERATED, help=f"default: {','.join(GENERATED)}")
    parser.add_argument("--samples", type=int, default=100, help="of each task and length (default: 100)")
    parser.add_argument("--concurrency", type=int, default=8, help="prompts at once (default: 8)")
    parser.add_argument("--settings", type=names, default=(RECIPE,), help=f"default: {RECIPE}; any of {list(SETTINGS)}")
    parser.add_argument("--output", type=Path, required=True, help="CSV file; rows are appended")
    add_commit(parser)
    options = parser.parse_args(words)
    check_least(parser, options, {"samples": 1, "concurrency": 1})
    if options.samples > MOST_SAMPLES:
        parser.error(f"--samples is {options.samples}; allowed: up to {MOST_SAMPLES}, which lm-eval makes")
    if options.samples % EVAL_DEPTHS and not samples.TASKS.keys().isdisjoint(options.tasks):
        parser.error(
            f"--samples is {options.samples}; allowed: multiples of {EVAL_DEPTHS} for sala-sglang eval's tasks"
        )
    for argument, given, allowed in (("tasks", options.tasks, TASKS), ("settings", options.settings, SETTINGS)):
        if unknown := [name for name in given if name not in allowed]:
            parser.error(f"--{argument} has {unknown[0]!r}; allowed: {', '.join(allowed)}")
    for length in options.lengths:
        if not length.isdecimal() or int(length) < 512:
            parser.error(f"--lengths has {length!r}; allowed: numbers of tokens from 512 on")
    options.lengths = tuple(map(int, options.lengths))
    return options


def names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def load_harness() -> Any:
    """The module that asks through lm-eval. Ends the process where that is not installed."""
    try:
        from benchmarks.evaluation import ruler_harness
    except ImportError as error:
        raise SystemExit(f"RULER needs lm-eval: pip install 'sala-sglang[ruler]' ({error})") from error
    return ruler_harness


def check_context(client: Client, lengths: tuple[int, ...]) -> None:
    """End the process where the server would refuse prompts, or shorten them."""
    longest = max(lengths) + BEYOND_LENGTH
    if client.context_tokens and longest > client.context_tokens:
        allowed = f"up to {client.context_tokens - BEYOND_LENGTH}, {BEYOND_LENGTH} less than the server's context"
        raise SystemExit(f"--lengths has {max(lengths)}; allowed: {allowed}")


def surroundings(client: Client, options: argparse.Namespace) -> dict[str, str]:
    """Values for the columns behind those that were measured; the GPU is that of this machine."""
    server = server_info(client)
    options.device = server.get("device", "cpu")
    found = results_file.surroundings(options) | {name: version(name) for name in VERSIONS}
    found |= {"dtype": server.get("dtype", ""), "weights": server.get("model_path", "")}
    return found | {"options": f"--concurrency {options.concurrency}"}


def server_info(client: Client) -> dict[str, Any]:
    """What an SGLang server says of itself; nothing where it is another one."""
    try:
        with urllib.request.urlopen(f"{client.root}/server_info", timeout=CONNECT_SECONDS) as response:
            return json.load(response)
    except (urllib.error.URLError, ValueError):
        return {}


if __name__ == "__main__":
    main()
