"""Every block of the documents is known, and every shell command in them is one that its program takes."""

import json

import pytest

from testing.draft_models import make_dense, make_head
from tests.documentation import rules
from tests.documentation.blocks import ROOT, Block, Command, blocks, commands, documents
from tests.plugin.processes import run_python

BLOCKS = [block for file in documents() for block in blocks(file, file.read_text())]
# By where they stand and how they begin.
COMMANDS = {
    f"{block} {number}: {' '.join(rules.plain_words(command))[:60]}": command
    for block in filter(rules.is_shell, BLOCKS)
    for number, command in enumerate(commands(block.text))
}
every_command = pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))

# Reads the arguments as the program does, then, on the CPU, resolves and checks them as a start of the server does.
RESOLVE = """
import argparse, contextlib, io, json, os, sys
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.server_args import ServerArgs, prepare_server_args

without_plugin = {("SGLANG_PLUGINS", "none"), ("SALA_DISABLE", "1")}  # serves other models too
before, verdicts = dict(os.environ), []
for environment, given, on_cpu in json.loads(sys.argv[1]):
    os.environ.clear()
    os.environ.update(before | environment)
    printed, verdict = io.StringIO(), None
    try:
        with contextlib.redirect_stderr(printed):
            parser = argparse.ArgumentParser()
            ServerArgs.add_cli_args(parser)
            parser.parse_args(given)
            if not without_plugin & environment.items():
                prepare_server_args(on_cpu).resolve_once()
    except SystemExit:
        verdict = printed.getvalue()
    except Exception as error:
        verdict = f"{type(error).__name__}: {error}"
    verdicts.append(verdict)
print("VERDICTS" + json.dumps(verdicts))
"""
# What a server on a GPU takes and one on a CPU refuses: the option and the value in its place, None for no option.
# Sizes that only the released model has heads for become one that the small model has.
ON_CPU = {"--quantization": None, "--hicache-io-backend": "direct", "--tp-size": "2"}
# Commands with a mistake, and what is said about it.
WOULD_NOT_START = {
    "sglang serve --model-path DIR --prot 31111": "--prot",
    "scripts/launch_server.sh --page-size 16": "page_size = 16 is not supported",
    "python3 -m sglang.launch_server --model DIR --tp-size two": "invalid int value",
    "SGLANG_MINICPM_FORCE_DENSE=1 scripts/launch_server.sh --dense-as-sparse": "FORCE_DENSE",
}


def on_cpu(arguments: list[str], draft_models: dict[str, str]) -> list[str]:
    """draft_models: directories by the words that stand for them."""
    arguments = [draft_models.get(word, word) for word in arguments]
    for option, value in ON_CPU.items():
        arguments = rules.with_value(arguments, option, value)
    direct = ["--hicache-io-backend", "direct"] if "--enable-hierarchical-cache" in arguments else []
    return [*rules.with_value(arguments, "--device", None), *direct, "--device", "cpu"]


@pytest.fixture(scope="module")
def draft_models(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("draft_models")
    head = make_head(rules.SALA_TINY, root / "head", layers=[1, 5, 8])
    return {"HEAD": str(head), "DENSE": str(make_dense(rules.SALA_TINY, root / "dense"))}


@pytest.fixture(scope="module")
def verdicts(draft_models) -> dict[str, str | None]:
    """What is wrong with the arguments of each command that starts a server; None where nothing is."""
    every = [*COMMANDS.values(), *(command for text in WOULD_NOT_START for command in commands(text))]
    given = {str(one): (one.environment, rules.server_arguments(rules.plain_words(one))) for one in every}
    starts = {name: (environment, words) for name, (environment, words) in given.items() if words is not None}
    requests = [(environment, words, on_cpu(words, draft_models)) for environment, words in starts.values()]
    done = run_python(RESOLVE, json.dumps(requests))
    lines = [line for line in done.stdout.splitlines() if line.startswith("VERDICTS")]
    assert lines, done.stderr
    return dict(zip(starts, json.loads(lines[0].removeprefix("VERDICTS")), strict=True))


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_has_a_kind(block: Block):
    known = {"python", None, "", "json", *rules.SHELL_LANGUAGES, *rules.OTHER_LANGUAGES}
    assert block.language in known, f"no rule in tests/documentation/rules.py for blocks of {block.language!r}"
    if block.language == "json":
        json.loads(block.text)


@every_command
def test_every_command_is_one_that_its_program_takes(command: Command, request, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = rules.plain_words(command)
    rules.rule_of(words).check(words, tmp_path)
    if rules.server_arguments(words) is not None:
        assert request.getfixturevalue("verdicts")[str(command)] is None


@pytest.mark.parametrize("text", WOULD_NOT_START)
def test_servers_that_would_not_start_are_found(text, verdicts):
    (command,) = commands(text)
    verdict = verdicts[str(command)]
    assert verdict and WOULD_NOT_START[text] in verdict


@pytest.mark.parametrize(
    "text",
    [
        "sala-sglang evaluate --base-url http://127.0.0.1:31111",
        "sala-sglang verify --modle DIR",
        "python -m benchmarks.serving.speed --model DIR --lenghts 8192",
        "python -m benchmarks.serving.sped --model DIR",
        "python examples/missing.py",
        "scripts/test.sh tests/missing",
        "pip install 'sala-sglang[evaluation]'",
        "pip install 'sglang==0.4.0' .",
        "make everything",
    ],
)
def test_commands_that_would_fail_are_found(text, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    ((words, _),) = commands(text)
    failures = (AssertionError, SystemExit, ImportError, FileNotFoundError, pytest.fail.Exception)
    with pytest.raises(failures):
        rules.rule_of(list(words)).check(list(words), tmp_path)


def test_blocks_are_found():
    text = """Text
31111. that is no list

    $ one \\
        --two 'a b'  # a comment
    X='{"a": 1}'

    three --four "$X" && Y=2 five > file
* an item
  goes on

      six

```bash
seven

    eight
```
"""
    found = list(blocks(ROOT / "README.md", text))
    assert [(block.line, block.language) for block in found] == [(4, None), (12, None), (15, "bash")]
    assert [command for block in found for command in commands(block.text)] == [
        (("one", "--two", "a b"), {}),
        (("three", "--four", '{"a": 1}'), {"X": '{"a": 1}'}),
        (("five",), {"X": '{"a": 1}', "Y": "2"}),
        (("six",), {}),
        (("seven",), {}),
        (("eight",), {}),
    ]


def test_requests_of_curl_are_read():
    text = """curl http://127.0.0.1:31111/v1/completions -H 'Content-Type: application/json' \\
        -d '{"model": "default",
             "prompt": "a"}'
    """
    (command,) = commands(text)
    assert rules.curl_request(command.words) == ("/v1/completions", {"model": "default", "prompt": "a"})
