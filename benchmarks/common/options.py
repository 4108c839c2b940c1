"""Arguments that several benchmarks take, and their checks."""

import argparse
import json
from collections.abc import Mapping

from benchmarks.common import results_file


def add_commit(parser: argparse.ArgumentParser) -> None:
    """``--commit``, which every row records."""
    parser.add_argument(
        "--commit", default=results_file.current_commit(), help="commit to record (default: the checkout's)"
    )


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """What benchmarks of ``sglang.Engine`` take: ``--device``, ``--engine-options`` and ``--commit``."""
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--engine-options", type=json.loads, default={}, help="further sglang.Engine options, as JSON")
    add_commit(parser)


def check_least(parser: argparse.ArgumentParser, arguments: argparse.Namespace, least: Mapping[str, int]) -> None:
    """End the process with an error that names the first argument below what ``least`` has for its name."""
    for name, lowest in least.items():
        if getattr(arguments, name) < lowest:
            parser.error(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; allowed: {lowest} or more")
