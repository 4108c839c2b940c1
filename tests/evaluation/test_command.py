"""The whole command with a server that checks lengths as SGLang does, is slow, refuses, or goes away."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sala_sglang import cli
from sala_sglang.checkpoint.tokenizer import make_tokenizer
from sala_sglang.evaluation.client import ANSWER_TOKENS, Client
from testing.server import ANSWER_SECONDS, POLL_SECONDS
from tests.evaluation.fake_server import FakeServer

ROOT = Path(__file__).parents[2]
JOBS = 15  # five tasks, three depths
MOST_OF_A_SENTENCE = 60  # tokens, of the tokenizer here


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(path, 510, 510, 511)
    return path


def arguments(server: FakeServer, out: Path, *more: str) -> list[str]:
    choice = ["--lengths", "1K", "--depths", "3", "--samples", "1", "--concurrency", "2"]
    return ["eval", "--base-url", server.base_url, "--out", str(out), *choice, *more]


def result(out: Path) -> dict:
    return json.loads((out / "result.json").read_text())


def without(found: dict, *names: str) -> dict:
    return {name: value for name, value in found.items() if name not in names}


@pytest.mark.parametrize(
    ("length", "more"), [("1K", ["--samples", "8"]), ("1M", ["--depths", "1", "--tasks", "passkey"])]
)
def test_a_server_of_this_context_serves_this_length_with_whole_answers(tokenizer, tmp_path, length, more):
    tokens = {"1K": 1 << 10, "1M": 1 << 20}[length]
    with FakeServer(tokenizer, tokens) as server:
        assert cli.main(arguments(server, tmp_path / "out", "--lengths", length, *more)) == 0
    assert all((cell["length"], cell["refused"]) == (tokens, 0) for cell in result(tmp_path / "out")["cells"])
    # SGLang keeps two tokens back; the last sentence that did not fit is missing.
    room = tokens - ANSWER_TOKENS - 2
    assert all(room - MOST_OF_A_SENTENCE < prompt <= room for prompt in server.prompts), server.prompts
    assert length != "1K" or max(server.prompts) == room  # of 120 prompts some fill it


def test_reasons_for_refusals_are_printed_once_with_their_count(tokenizer, tmp_path, capsys):
    with FakeServer(tokenizer, 1500) as server:
        assert cli.main(arguments(server, tmp_path / "out", "--lengths", "1K,2K,4K")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"Refused: {2 * JOBS} of {3 * JOBS} requests" in lines
    reasons = [line for line in lines if "maximum context length of 1500 tokens" in line]
    assert len(reasons) == 2
    assert reasons[0].startswith(f"  --lengths 2K, {JOBS} of them: 400: Requested token count exceeds")
    assert reasons[1].startswith(f"  --lengths 4K, {JOBS} of them: 400: Requested token count exceeds")


def test_when_nothing_is_served_the_exit_code_is_1(tokenizer, tmp_path, capsys):
    with FakeServer(tokenizer, 700) as server:
        assert cli.main(arguments(server, tmp_path / "out")) == 1
    assert all(cell["refused"] == 1 for cell in result(tmp_path / "out")["cells"])
    assert f"Refused: {JOBS} of {JOBS} requests" in capsys.readouterr().out


def test_lengths_beyond_the_context_that_a_server_names_are_not_sent(tokenizer, tmp_path, capsys):
    with FakeServer(tokenizer, 1 << 10, lists_context=True) as server:
        assert cli.main(arguments(server, tmp_path / "out", "--lengths", "1K,4M")) == 0
    assert len(server.prompts) == JOBS
    expected = f"  --lengths 4M, {JOBS} of them: 4194304 tokens are not possible; allowed: up to 1024, "
    assert expected in capsys.readouterr().out


def test_answers_that_the_server_cuts_are_no_answers(tokenizer, tmp_path, capsys):
    with FakeServer(tokenizer, 1 << 10, answer_tokens=9) as server:
        assert cli.main(arguments(server, tmp_path / "out")) == 1
    assert f"{JOBS} of them: the server ended the answer after 9 of 64 tokens" in capsys.readouterr().out


def test_another_tokenizer_than_the_servers_is_noticed(tokenizer, tmp_path, capsys):
    make_tokenizer(tmp_path / "other", 400, 510, 511)
    with FakeServer(tokenizer, 4096) as server:
        assert cli.main(arguments(server, tmp_path / "right")) == 0
        assert "is it the server's" not in capsys.readouterr().out
        assert cli.main(arguments(server, tmp_path / "wrong", "--tokenizer", str(tmp_path / "other"))) == 0
    assert f"{JOBS} prompts have -" in capsys.readouterr().out


def test_a_killed_run_that_is_resumed_gives_the_same_result(tokenizer, tmp_path):
    with FakeServer(tokenizer, 1500) as server:
        lengths = "--lengths", "512,1K,2K"  # of the last all are refused
        assert cli.main(arguments(server, tmp_path / "whole", *lengths)) == 0
    kept = tmp_path / "killed" / "answers.jsonl"
    with FakeServer(tokenizer, 1500, answers=20, leaves="waits") as server:
        command = [sys.executable, "-m", "sala_sglang.cli", *arguments(server, tmp_path / "killed", *lengths)]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            wait_until(lambda: kept.exists() and kept.read_bytes().count(b"\n") == 21)
            process.kill()
    assert not (tmp_path / "killed" / "result.json").exists()
    with kept.open("a") as file:
        file.write('{"task": "passkey", "len')
    with FakeServer(tokenizer, 1500) as server:
        assert cli.main(arguments(server, tmp_path / "killed", *lengths, "--resume")) == 0
        assert len(server.prompts) == 3 * JOBS - 20
        first = result(tmp_path / "killed")
        assert cli.main(arguments(server, tmp_path / "killed", *lengths, "--resume")) == 0
        assert len(server.prompts) == 3 * JOBS - 20  # nothing is left to ask
    assert result(tmp_path / "killed") == first
    whole, resumed = result(tmp_path / "whole"), result(tmp_path / "killed")
    assert without(resumed, "date", "server") == without(whole, "date", "server")
    scores = {cell["score"] for cell in whole["cells"]}
    assert {0.0, 1.0, None} <= scores  # so that an answer in a wrong place would show


def test_an_interrupted_run_ends_at_once(tokenizer, tmp_path):
    with FakeServer(tokenizer, 1500, answers=4, leaves="waits") as server:
        command = [sys.executable, "-m", "sala_sglang.cli", *arguments(server, tmp_path / "out")]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            wait_until(lambda: server.served == 4 and server.at_once == 2)
            process.send_signal(signal.SIGINT)
            message = process.communicate(timeout=ANSWER_SECONDS)[1]
    assert process.returncode == 130
    assert f"interrupted; 4 of {JOBS} answers are in {tmp_path / 'out' / 'answers.jsonl'}" in message
    assert "--resume goes on" in message


@pytest.mark.parametrize("leaves", ["closes", 503])
def test_a_server_that_goes_away(tokenizer, tmp_path, capsys, leaves):
    with FakeServer(tokenizer, 1500, answers=4, leaves=leaves) as server:
        assert cli.main(arguments(server, tmp_path / "out")) == 3
    message = capsys.readouterr().err
    assert f"{server.base_url} does not answer: " in message
    assert f"4 of {JOBS} answers are in" in message and "--resume goes on" in message
    assert not (tmp_path / "out" / "result.json").exists()
    with FakeServer(tokenizer, 1500) as server:
        assert cli.main(arguments(server, tmp_path / "out", "--resume")) == 0
    assert len(server.prompts) == JOBS - 4
    assert all(cell["served"] == 1 for cell in result(tmp_path / "out")["cells"])


@pytest.mark.parametrize(
    ("option", "value", "parts"),
    [
        ("--tasks", "passkey", ["tasks is ['passkey']", "'variables'"]),
        ("--lengths", "2K", ["lengths is [2048]", "[1024]"]),
        ("--depths", "2", ["depths is [0.0, 1.0]", "[0.0, 0.5, 1.0]"]),
        ("--samples", "2", ["samples is 2", "begun with 1"]),
        ("--seed", "7", ["seed is 7", "begun with 0"]),
        ("--model", "other", ["model is 'other'", "'fake'"]),
        ("--tokenizer", "copy", ["tokenizer is", "copy", "begun with"]),
    ],
)
def test_another_plan_is_not_resumed(tokenizer, tmp_path, capsys, option, value, parts):
    if option == "--tokenizer":
        value = str(tmp_path / value)
        make_tokenizer(Path(value), 510, 510, 511)
    with FakeServer(tokenizer, 1500) as server:
        assert cli.main(arguments(server, tmp_path / "out")) == 0
        before = (tmp_path / "out" / "answers.jsonl").read_bytes()
        assert cli.main(arguments(server, tmp_path / "out", option, value, "--resume")) == 2
        assert len(server.prompts) == JOBS
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == before
    message = capsys.readouterr().err
    assert all(part in message for part in parts), message


def test_directories_that_cannot_be_used(tokenizer, tmp_path, capsys):
    with FakeServer(tokenizer, 1500) as server:
        assert cli.main(arguments(server, tmp_path / "new", "--resume")) == 2
        assert f"--resume: {str(tmp_path / 'new')!r} has no answers.jsonl" in capsys.readouterr().err
        assert cli.main(arguments(server, ROOT)) == 2
        assert f"--out: {str(ROOT)!r} exists; allowed: a new or an empty directory" in capsys.readouterr().err
        (tmp_path / "answers.jsonl").write_text("no JSON\n")
        assert cli.main(arguments(server, tmp_path, "--resume")) == 2
        assert "answers.jsonl' has a line that is none of an evaluation" in capsys.readouterr().err


def test_progress_and_requests_at_once(tokenizer, tmp_path, capsys):
    with FakeServer(tokenizer, 1500, answers=JOBS - 3, leaves=503) as server:
        assert cli.main(arguments(server, tmp_path / "out", "--concurrency", "3")) == 3
    assert server.most_at_once <= 3
    shown = capsys.readouterr().err
    assert f"0 of {JOBS} requests, 0 refused" in shown
    assert f"{JOBS - 3} of {JOBS} requests, 0 refused" in shown
    assert "12.3k/15.4k [" in shown


def test_answers_may_take_as_long_as_they_take(tokenizer):
    with FakeServer(tokenizer, 1500) as server:
        client = Client(server.base_url, None)
        assert client.api.timeout.read is None and client.api.timeout.connect == 30
        # Connections of which the other end is gone are noticed, and those in use not taken for idle on the way.
        with client.api._client.stream("GET", f"{server.base_url}/v1/models") as response:
            connection = response.extensions["network_stream"].get_extra_info("socket")
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
        client.api.close()


def wait_until(condition) -> None:
    deadline = time.monotonic() + ANSWER_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(POLL_SECONDS)
