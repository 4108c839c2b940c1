"""The command ``sala-sglang``: look at an installation, make checkpoints with random weights, verify a checkpoint."""

import argparse
import sys
from pathlib import Path

from sala_sglang import __version__


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; 2 stands for impossible arguments."""
    options = _parser().parse_args(arguments)
    return options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sala-sglang", description=__doc__.replace("``", ""))
    parser.add_argument("--version", action="version", version=f"sala-sglang {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="print what is installed, what would serve, and what is missing")
    doctor.set_defaults(run=_doctor)

    make = commands.add_parser("make-checkpoint", help="write a checkpoint with random weights")
    make.add_argument("--preset", required=True, choices=("tiny", "full"), help="model size; full is the released one")
    make.add_argument("--out", required=True, type=_new_directory, metavar="DIR", help="directory to create")
    make.add_argument("--seed", default=0, type=_seed, metavar="N", help="seed of the weights (default: 0)")
    make.set_defaults(run=_make_checkpoint)

    verify = commands.add_parser("verify", help="check that a checkpoint answers like the released one")
    verify.add_argument("--model", required=True, type=_model_directory, metavar="DIR", help="checkpoint to verify")
    verify.set_defaults(run=_verify)
    return parser


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


def _seed(value: str) -> int:
    if not (value.isascii() and value.isdigit() and int(value) < 2**63):
        raise argparse.ArgumentTypeError(f"{value!r} is not possible; allowed: integers from 0 to 2**63 - 1")
    return int(value)


# The commands import what they need when they run, so that the others stay quick and work without it.


def _doctor(options: argparse.Namespace) -> int:
    from sala_sglang import doctor

    return doctor.run()


def _make_checkpoint(options: argparse.Namespace) -> int:
    from sala_sglang.checkpoint import make_checkpoint

    make_checkpoint(options.preset, options.out, options.seed)
    print(f"Wrote the {options.preset} checkpoint with random weights to {options.out}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from sala_sglang import verify

    return verify.run(options.model)


if __name__ == "__main__":
    sys.exit(main())
