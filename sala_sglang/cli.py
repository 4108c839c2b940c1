"""The command ``sala-sglang``: plan and look at servers, compile for them, make, quantise and judge checkpoints."""

import argparse
import sys
from pathlib import Path

from sala_sglang import __version__

EVAL_TASKS = ("passkey", "key-value", "multi-query", "multi-value", "variables")
MIN_EVAL_TOKENS = 512
BOUNDS = ("fp8", "w4a16")
RECIPES = ("fp8", "fp8-block", "w4a16", "w4-fp8gates")
CACHE_DTYPES = ("auto", "bfloat16", "fp8_e4m3")
DTYPES = ("auto", "bfloat16", "float16", "float32")
MAX_VERIFIED_ROWS = 16
TOKEN_UNITS = {"K": 1 << 10, "M": 1 << 20}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; 2 stands for impossible arguments."""
    options = _parser().parse_args(arguments)
    return options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sala-sglang", description=__doc__.replace("``", ""))
    parser.add_argument("--version", action="version", version=f"sala-sglang {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="print what is installed, what would serve, and what is missing")
    doctor.add_argument("--touches", action="store_true", help="print every touch on SGLang, and why, instead")
    doctor.add_argument(
        "server_arguments",
        nargs="*",
        metavar="-- ARGUMENTS",
        help="of sglang.launch_server: print what a server would make of them instead",
    )
    doctor.set_defaults(run=_doctor)

    plan = commands.add_parser("plan", help="say whether a load fits on a GPU, and the arguments of a server for it")
    plan.add_argument("--gpu", required=True, type=_card, metavar="NAME", help='a card such as "RTX 5090"')
    plan.add_argument(
        "--context", required=True, type=_tokens, metavar="N", help="tokens of a request, like 128K or 1M"
    )
    plan.add_argument("--weights", default="bf16", choices=("bf16", "fp8", "w4"), help="default: %(default)s")
    plan.add_argument("--kv", default="bf16", choices=("bf16", "fp8"), help="keys and values (default: %(default)s)")
    plan.add_argument("--requests", default=1, type=_positive, metavar="N", help="at the same time (default: 1)")
    plan.set_defaults(run=_plan)

    _add_warm(commands)
    make = commands.add_parser("make-checkpoint", help="write a checkpoint with random weights")
    make.add_argument("--preset", required=True, choices=("tiny", "full"), help="model size; full is the released one")
    make.add_argument("--out", required=True, type=_new_directory, metavar="DIR", help="directory to create")
    make.add_argument("--seed", default=0, type=_seed, metavar="N", help="seed of the weights (default: 0)")
    make.set_defaults(run=_make_checkpoint)

    verify = commands.add_parser("verify", help="check that a checkpoint answers like the released one")
    verify.add_argument("--model", required=True, type=_model_directory, metavar="DIR", help="checkpoint to verify")
    verify.set_defaults(run=_verify)

    evaluation = commands.add_parser("eval", help="measure what a server finds in long prompts")
    evaluation.add_argument("--base-url", required=True, metavar="URL", help="a server with the OpenAI API")
    evaluation.add_argument("--model", metavar="NAME", help="served name (default: the first that the server lists)")
    evaluation.add_argument(
        "--tokenizer", metavar="PATH", help="directory or name (default: what an SGLang server says)"
    )
    evaluation.add_argument("--out", required=True, type=Path, metavar="DIR", help="directory to create")
    evaluation.add_argument("--resume", action="store_true", help="go on with the evaluation that --out has a part of")
    evaluation.add_argument(
        "--lengths",
        default="1K,2K,4K,8K",
        type=parse_lengths,
        metavar="N,...",
        help="tokens of prompt and answer, like 4096, 16K or 1M (default: %(default)s)",
    )
    evaluation.add_argument(
        "--depths", default=5, type=_positive, metavar="N", help="evenly from start to end (default: 5)"
    )
    evaluation.add_argument(
        "--samples", default=3, type=_positive, metavar="N", help="per task, length and depth (default: 3)"
    )
    evaluation.add_argument(
        "--tasks", default=",".join(EVAL_TASKS), type=_tasks, metavar="NAME,...", help="default: %(default)s"
    )
    evaluation.add_argument(
        "--concurrency", default=4, type=_positive, metavar="N", help="requests at a time (default: 4)"
    )
    evaluation.add_argument("--seed", default=0, type=_seed, metavar="N", help="seed of the prompts (default: 0)")
    evaluation.set_defaults(run=_evaluate)
    _add_quantize(commands)
    _add_compare(commands)
    return parser


def _add_warm(commands: argparse._SubParsersAction) -> None:
    warm = commands.add_parser("warm", help="compile a server's kernels, for a GPU that need not be here")
    warm.add_argument("--gpu", type=_card, metavar="NAME", help='a card such as "H100" (default: the GPU that is here)')
    warm.add_argument("--output", type=Path, metavar="DIR", help="Triton's cache to fill (default: the one in use)")
    # As the server's arguments of these names.
    warm.add_argument("--model", type=_model_directory, metavar="DIR", help="checkpoint (default: sizes as released)")
    warm.add_argument("--tp", "--tp-size", dest="tp_size", default=1, type=_positive, metavar="N", help="default: 1")
    warm.add_argument("--dtype", default="auto", choices=DTYPES, help="default: the checkpoint's")
    warm.add_argument("--kv-cache-dtype", default="auto", choices=CACHE_DTYPES, help="default: the model's dtype")
    warm.add_argument("--context-length", type=_tokens, metavar="N", help="default: the checkpoint's")
    warm.add_argument(
        "--speculative-num-draft-tokens",
        default=0,
        type=_verified_rows,
        metavar="N",
        help="of a server that speculates, which has 4 by default (default here: no speculation)",
    )
    warm.set_defaults(run=_warm)


def _add_quantize(commands: argparse._SubParsersAction) -> None:
    quantize = commands.add_parser("quantize", help="write a checkpoint with weights of eight or four bits")
    quantize.add_argument(
        "--model", required=True, type=_model_directory, metavar="DIR", help="checkpoint of 16 bits to quantise"
    )
    quantize.add_argument("--out", required=True, type=_new_directory, metavar="DIR", help="directory to create")
    quantize.add_argument("--recipe", required=True, choices=RECIPES, help="what the weights become")
    quantize.add_argument(
        "--calibration",
        type=_texts,
        metavar="FILE",
        help="text, or .jsonl with text or messages, that 4-bit weights go by and that shows what changes; or "
        "'generated' (default: that for 4-bit weights, none for FP8)",
    )
    quantize.set_defaults(run=_quantize)


def _add_compare(commands: argparse._SubParsersAction) -> None:
    compare = commands.add_parser("compare", help="judge a quantised model by the one before, both served")
    compare.add_argument(
        "--base-url", required=True, action="append", metavar="URL", help="an SGLang server; first the model before"
    )
    compare.add_argument(
        "--model",
        action="append",
        type=_model_directory,
        metavar="DIR",
        help="their checkpoints, to compare the blocks that they select too",
    )
    compare.add_argument("--tokenizer", metavar="PATH", help="directory or name (default: what the first server says)")
    compare.add_argument("--bounds", default=BOUNDS[-1], choices=BOUNDS, help="default: %(default)s, the wider ones")
    compare.add_argument(
        "--lengths",
        default="2K,8K,32K",
        type=parse_lengths,
        metavar="N,...",
        help="tokens of the texts, like 4096 or 16K (default: %(default)s)",
    )
    compare.add_argument(
        "--items", default=500, type=_positive, metavar="N", help="numbers to find in them, at least (default: 500)"
    )
    compare.add_argument("--seed", default=0, type=_seed, metavar="N", help="seed of the texts (default: 0)")
    compare.add_argument("--output", type=Path, metavar="CSV", help="file to write, anew")
    compare.set_defaults(run=_compare)


def _new_directory(value: str) -> Path:
    path = Path(value)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise argparse.ArgumentTypeError(f"{value!r} exists; allowed: a new or an empty directory")
    return path


def _model_directory(value: str) -> Path:
    path = Path(value)
    if not (path / "config.json").is_file():
        raise argparse.ArgumentTypeError(f"{value!r} has no config.json; allowed: a directory with a checkpoint")
    return path


def _texts(value: str) -> Path | str:
    path = Path(value)
    if value != "generated" and not path.is_file():
        raise argparse.ArgumentTypeError(f"{value!r} is no file; allowed: a text file, .jsonl, or 'generated'")
    return value if value == "generated" else path


def _seed(value: str) -> int:
    if not (value.isascii() and value.isdigit() and int(value) < 2**63):
        raise argparse.ArgumentTypeError(f"{value!r} is not possible; allowed: integers from 0 to 2**63 - 1")
    return int(value)


def _positive(value: str) -> int:
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise argparse.ArgumentTypeError(f"{value!r} is not possible; allowed: integers from 1")
    return int(value)


def _verified_rows(value: str) -> int:
    if not (value.isascii() and value.isdigit() and 2 <= int(value) <= MAX_VERIFIED_ROWS):
        raise argparse.ArgumentTypeError(f"{value!r} is not possible; allowed: integers from 2 to {MAX_VERIFIED_ROWS}")
    return int(value)


def _card(value: str) -> str:
    from sala_sglang.cards import data

    try:
        return data.find(value).name
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _tokens(value: str) -> int:
    digits, unit = (value[:-1], TOKEN_UNITS[value[-1]]) if value[-1:] in TOKEN_UNITS else (value, 1)
    if not (digits.isascii() and digits.isdigit() and int(digits) > 0):
        raise argparse.ArgumentTypeError(f"{value!r} is not possible; allowed: numbers like 65536, 128K or 1M")
    return int(digits) * unit


def parse_lengths(value: str) -> tuple[int, ...]:
    """Numbers of tokens like "1K,4096", in order. Raises ArgumentTypeError for what is none, or too short."""
    lengths = []
    for part in value.split(","):
        digits, unit = (part[:-1], TOKEN_UNITS[part[-1]]) if part[-1:] in TOKEN_UNITS else (part, 1)
        tokens = int(digits) * unit if digits.isascii() and digits.isdigit() else 0
        if tokens < MIN_EVAL_TOKENS:  # how many there may be is for the server to say
            allowed = f"numbers from {MIN_EVAL_TOKENS} like 4096, 16K or 1M"
            raise argparse.ArgumentTypeError(f"{part!r} is not possible; allowed: {allowed}, separated by commas")
        lengths.append(tokens)
    return tuple(sorted(set(lengths)))


def _tasks(value: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(value.split(",")))
    for name in names:
        if name not in EVAL_TASKS:
            raise argparse.ArgumentTypeError(f"{name!r} is no task; allowed: {', '.join(EVAL_TASKS)}")
    return names


# The commands import what they need when they run, so that the others stay quick and work without it.


def _doctor(options: argparse.Namespace) -> int:
    if options.server_arguments:
        from sala_sglang.plugin import resolved

        return resolved.report(options.server_arguments)
    from sala_sglang import doctor

    return doctor.print_touches() if options.touches else doctor.run()


def _plan(options: argparse.Namespace) -> int:
    from sala_sglang.cards import command

    return command.run(options)


def _warm(options: argparse.Namespace) -> int:
    from sala_sglang.ahead import command

    return command.run(options)


def _make_checkpoint(options: argparse.Namespace) -> int:
    from sala_sglang.checkpoint.make import make_checkpoint

    make_checkpoint(options.preset, options.out, options.seed)
    print(f"Wrote the {options.preset} checkpoint with random weights to {options.out}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from sala_sglang.checkpoint import verify

    return verify.run(options.model)


def _evaluate(options: argparse.Namespace) -> int:
    try:
        from sala_sglang.evaluation import command
    except ModuleNotFoundError as error:
        print(f"sala-sglang eval: {error.name} is missing; pip install 'sala-sglang[eval]'", file=sys.stderr)
        return 2
    return command.run(options)


def _compare(options: argparse.Namespace) -> int:
    try:
        from sala_sglang.quantization.comparison import command
    except ModuleNotFoundError as error:
        print(f"sala-sglang compare: {error.name} is missing; pip install 'sala-sglang[eval]'", file=sys.stderr)
        return 2
    return command.run(options)


def _quantize(options: argparse.Namespace) -> int:
    from sala_sglang.quantization.writer import command

    return command.run(options)


if __name__ == "__main__":
    sys.exit(main())
