"""What is done with every command and every other block of the documents. What no rule takes fails.

A command is run where that takes a moment, and else its arguments are read by the program that they are for.
"""

import argparse
import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

from sala_sglang import TESTED_SGLANG_VERSIONS, cli
from tests.documentation.blocks import ROOT, Block, Command

SALA_TINY = ROOT / "checkpoints" / "sala-tiny"
SHELL_LANGUAGES = {"bash", "sh", "shell", "console"}
# Languages of blocks that are no commands, and who looks at them.
OTHER_LANGUAGES = {
    "mermaid": "a picture",
    "text": "prose or output",
    "pycon": "an example of a docstring",
    "ini": "a unit of systemd",
    "dockerfile": "an image that needs a network",
    "yaml": "a part of a manifest for Kubernetes",
}
# Made from docstrings, whose examples tests/kernels/test_documentation.py runs.
FROM_DOCSTRINGS = "operators.md"
# Formulas and pictures are known by what their first line has and no command.
NO_COMMAND = re.compile(r"[^#]*[→►·Σ]")

# What programs print, by its beginning.
OUTPUTS = ("plugin: N times sooner",)

# Programs that are not run, by how their commands begin, and why.
NOT_RUN = {
    "git clone": "needs a network",
    "docker": "needs a daemon; tests/documentation/test_dockerfile.py reads the recipe",
    "cd": "changes the directory of a reader's shell",
    "source": "changes a reader's shell",
    "pre-commit": "changes the checkout",
    "python -m sglang.bench_serving": "SGLang's own; tests/benchmarks starts it",
    "python -m sglang_router.launch_router": "SGLang's router, in an environment of its own",
    "lm_eval run": "lm-eval's own, of the extra ruler; benchmarks.evaluation.ruler asks the same",
    "rm -rf dist": "a step of a release",
    "python -m build": "a step of a release",
    "python -m twine": "a step of a release",
    "python -m zipfile": "a step of a release",
    "python -m venv": "a step of a release",
}


def is_shell(block: Block) -> bool:
    """Whether it has commands; an indented block has unless something says otherwise."""
    first = block.text.split("\n")[0]
    return block.language in SHELL_LANGUAGES or (
        not block.language and not NO_COMMAND.match(first) and not first.startswith(OUTPUTS)
    )


class Rule(NamedTuple):
    """begins: a regular expression for the beginning of a command, with Python as ``python``."""

    begins: str
    check: Callable[[list[str], Path], None]


def plain_words(command: Command) -> list[str]:
    """Words with programs of environments by their plain names."""
    program = re.sub(r"^(?:\S*/)?bin/", "", command.words[0])
    return ["python" if re.fullmatch(r"python3?(\.\d+)?", program) else program, *command.words[1:]]


def rule_of(words: list[str]) -> Rule:
    """Fails the test where there is none."""
    line = " ".join(words)
    for rule in RULES:
        if re.match(rf"(?:{rule.begins})(?= |$)", line):
            return rule
    pytest.fail(f"no rule in tests/documentation/rules.py for: {line}")


def server_arguments(words: list[str]) -> list[str] | None:
    """Arguments of a command that starts a server, with sala-tiny for the model; None for other commands."""
    match words:
        case ["scripts/launch_server.sh", *given]:
            given = with_value(given, "--venv", None)
            given = with_value(given, "--index-url", None)
        case ["python", "-m", "sglang.launch_server", *given] | ["sala-sglang", "doctor", "--", *given]:
            pass
        case ["sglang", "serve", *given]:
            if given and not given[0].startswith("-"):
                given = ["--model-path", *given]
        case _:
            return None
    for name in ("--model", "--model-path"):
        given = with_value(given, name, None)
    return ["--model-path", str(SALA_TINY), *given]


def with_value(words: list[str], option: str, value: str | None) -> list[str]:
    """The words with another value of ``option`` where it is there, or without it."""
    found, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=")
        if name != option:
            found.append(word)
            continue
        if not equals:
            assert rest, f"{option} has no value"
            rest.pop(0)
        found += [] if value is None else [option, value]
    return found


def check_cli(words: list[str], folder: Path) -> None:
    """Read by the parser of ``sala-sglang``; what needs neither a server nor a large checkpoint also runs."""
    given = with_value(words, "--out", str(folder / "out"))
    given = with_value(given, "--model", str(SALA_TINY)) if given[1] in ("verify", "quantize") else given
    options = cli._parser().parse_args(given[1:])
    if given[1] == "doctor" or getattr(options, "preset", None) == "tiny":
        assert options.run(options) == 0


def check_module(words: list[str], folder: Path) -> None:
    """Read by the module's own parser."""
    module, given = importlib.import_module(words[2]), with_value(words[3:], "--model", str(SALA_TINY))
    if hasattr(module, "parse_arguments"):
        module.parse_arguments(given)
        return
    with pytest.MonkeyPatch.context() as patch:
        parse = argparse.ArgumentParser.parse_args
        patch.setattr(argparse.ArgumentParser, "parse_args", lambda parser, *rest: stop(parse(parser, *rest)))
        patch.setattr(sys, "argv", [words[2], *given])
        with pytest.raises(Parsed):
            next(getattr(module, name) for name in ("main", "parse") if hasattr(module, name))()


class Parsed(Exception):
    """The arguments of a module are fine."""


def stop(options: argparse.Namespace) -> None:
    raise Parsed(options)


def check_example(words: list[str], folder: Path) -> None:
    """It is there; tests/examples runs it."""
    assert Path(words[1]).parent == Path("examples") and (ROOT / words[1]).is_file()


def check_script(words: list[str], folder: Path) -> None:
    """It is there, can be read, and so are the tests that it is given."""
    script = next(word for word in words if word not in ("bash", "python"))
    if words[0] == "python":
        ast.parse((ROOT / script).read_text())
    else:
        subprocess.run(["bash", "-n", ROOT / script], check=True)
    for word in words:
        if word.startswith("tests/"):
            assert (ROOT / word.split("::")[0]).exists(), word


def check_requirements(words: list[str], folder: Path) -> None:
    """Requirements that can be read; of this package with extras that it has, of SGLang in a tested version."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words[words.index("install") + 1 :]:
        if word.startswith(("-", "dist/")):
            continue
        requirement = Requirement(f"sala-sglang{word[1:]}" if word.startswith(".") else word)
        if requirement.name == "sala-sglang":
            assert requirement.extras <= extras.keys(), word
        if requirement.name == "sglang" and requirement.specifier:
            assert any(map(requirement.specifier.contains, TESTED_SGLANG_VERSIONS)), word


def check_code(words: list[str], folder: Path) -> None:
    compile(words[2], "<string>", "exec")


def not_run(words: list[str], folder: Path) -> None:
    """See NOT_RUN."""


def with_server(words: list[str], folder: Path) -> None:
    """tests/documentation/test_with_server.py sends it."""


def parsed_together(words: list[str], folder: Path) -> None:
    """tests/documentation/test_commands.py reads the arguments of all servers in one process."""


RULES = (
    Rule(
        r"scripts/launch_server\.sh|python -m sglang\.launch_server|sglang serve|sala-sglang doctor --", parsed_together
    ),
    Rule(r"curl", with_server),
    Rule(r"sala-sglang", check_cli),
    Rule(r"python -m (?:benchmarks|training|tests)\.\S+", check_module),
    Rule(r"python examples/\S+\.py", check_example),
    Rule(r"python scripts/\S+\.py|scripts/\S+\.sh|bash \.ci/run", check_script),
    Rule(r"(?:python -m |uv )?pip install", check_requirements),
    Rule(r"python -c", check_code),
    *(Rule(re.escape(begins), not_run) for begins in NOT_RUN),
)


def curl_request(words: tuple[str, ...]) -> tuple[str, dict | None]:
    """Path and JSON body that a ``curl`` command sends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("-H", "--header", action="append")
    parser.add_argument("-d", "--data", "--json")
    parser.add_argument("-s", "--silent", action="store_true")
    parser.add_argument("-N", "--no-buffer", action="store_true")
    parser.add_argument("-X", "--request")
    options = parser.parse_args(words[1:])
    path = re.sub(r"^(?:https?://)?[^/]+", "", options.url)
    return path, json.loads(options.data) if options.data else None
