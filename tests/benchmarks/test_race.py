"""The mixed load: its requests, what it does with servers that are almost right, and a run on a real server."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.common import results_file
from benchmarks.serving import race
from benchmarks.serving.mixed_load import PROMPT_TOKENS, requests
from testing.server import ANSWER_SECONDS, Server

LONGEST = PROMPT_TOKENS[-1][-1]


class Completions(BaseHTTPRequestHandler):
    """Streams as many tokens as were asked for, with no other fields than every server has."""

    def log_message(self, *values) -> None:
        pass

    def do_GET(self):
        models = {"data": [{"id": "some-model"}]}
        self.answer(200, models) if self.path == "/v1/models" else self.answer(404, {})

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.enter(body)
        if server.refusal:
            return self.answer(400, {"error": server.refusal})
        self.send_response(200)
        self.end_headers()
        tokens = min(body["max_tokens"], server.most_tokens)
        for _ in range(tokens):
            self.event({"choices": [{"text": "a"}], "usage": None})
        prompt = body["prompt"] if isinstance(body["prompt"], list) else body["prompt"].split()
        server.leave()  # before the client can send its next request
        self.event({"choices": [], "usage": {"prompt_tokens": len(prompt), "completion_tokens": tokens}})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, content: dict) -> None:
        self.wfile.write(b"data: " + json.dumps(content).encode() + b"\n\n")

    def answer(self, status: int, content: dict) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())


class FakeServer(ThreadingHTTPServer):
    """bodies: of the completions it was asked for. most_at_once: how many were open together.

    together: so many are awaited before any is answered, but for the warm-up.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Completions)
        self.bodies, self.open, self.most_at_once, self.lock = [], 0, 0, threading.Lock()
        self.most_tokens, self.refusal, self.together = 1_000_000, "", threading.Barrier(1)

    def enter(self, body: dict) -> None:
        with self.lock:
            self.bodies.append(body)
            self.open += 1
            self.most_at_once = max(self.most_at_once, self.open)
            warm_up = len(self.bodies) == 1
        if not warm_up:
            self.together.wait(ANSWER_SECONDS)

    def leave(self) -> None:
        with self.lock:
            self.open -= 1


@pytest.fixture
def server():
    with FakeServer() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def run(url: str, path: Path, monkeypatch, words: str = "") -> list[dict]:
    """Rows of the CSV file after the race."""
    given = f"--base-url {url} --output {path} --device cpu --longest 1000 --vocabulary 500 {words}"
    monkeypatch.setattr(sys, "argv", ["", *given.split()])
    assert race.main() == 0
    return results_file.read(path)


def url(server: FakeServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def test_the_mix_is_that_of_the_published_figures():
    totals = [
        (sum(one.prompt_tokens for one in found), sum(one.new_tokens for one in found))
        for found in (requests(count, seed=7, longest=LONGEST) for count in (4, 16, 48))
    ]
    assert totals == [(29_640, 160), (754_789, 6_022), (2_209_896, 26_178)]


def test_the_mix_has_its_shares():
    found = requests(4000, seed=1, longest=LONGEST)
    for share, low, high in PROMPT_TOKENS:
        within = sum(low <= one.prompt_tokens <= high for one in found) / len(found)
        assert within == pytest.approx(share / 100, abs=0.04)  # five standard deviations
    assert min(one.new_tokens for one in found) == 8 and max(one.new_tokens for one in found) <= 4096


def test_requests_are_the_same_for_every_engine_and_not_repeated(server, tmp_path, monkeypatch):
    path, server.together = tmp_path / "x.csv", threading.Barrier(3)
    run(url(server), path, monkeypatch, "--engine one --levels 3:9")
    first, server.bodies = server.bodies, []
    rows = run(f"{url(server)}/v1/", path, monkeypatch, "--engine two --levels 3:9")
    assert sorted(map(str, first)) == sorted(map(str, server.bodies))
    assert len(first) == 10 and len({str(body["prompt"]) for body in first}) == 10  # with the warm-up
    assert all(10 <= token < 500 for body in first for token in body["prompt"])
    assert all(body["ignore_eos"] and body["model"] == "some-model" for body in first)
    assert server.most_at_once == 3

    asked = requests(9, seed=7, longest=1000)
    expected = [str(sum(one.prompt_tokens for one in asked)), str(sum(one.new_tokens for one in asked))]
    assert [[row["prompt_tokens"], row["new_tokens"]] for row in rows] == [expected] * 2
    assert [row["sglang"] for row in rows] == ["", ""]  # nothing says that these servers are SGLang
    assert path.with_suffix(".png").exists()


def test_levels_that_the_file_has_are_not_run_again(server, tmp_path, monkeypatch):
    path = tmp_path / "x.csv"
    run(url(server), path, monkeypatch, "--levels 1:2")
    server.bodies = []
    assert len(run(url(server), path, monkeypatch, "--levels 1:2")) == 1 and not server.bodies
    rows = run(url(server), path, monkeypatch, "--levels 1:2,2:3")
    assert [(row["at_once"], row["requests"]) for row in rows] == [("1", "2"), ("2", "3")]
    assert len(run(url(server), path, monkeypatch, "--levels 1:2 --seed 8")) == 3


def test_words_for_servers_that_take_no_ids(server, tmp_path, monkeypatch):
    (row,) = run(url(server), tmp_path / "x.csv", monkeypatch, "--levels 1:2 --prompts text")
    assert all(isinstance(body["prompt"], str) for body in server.bodies)
    assert row["prompt_tokens"] == str(sum(one.prompt_tokens for one in requests(2, seed=7, longest=1000)))


@pytest.mark.parametrize(
    "change, error",
    [
        ({"most_tokens": 5}, "ended an answer of 8 tokens after 5; it must take ignore_eos"),
        ({"refusal": "no token ids"}, "the server answers 400: .*no token ids"),
    ],
)
def test_answers_that_are_not_what_was_asked_end_the_run(server, tmp_path, monkeypatch, change, error):
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(RuntimeError, match=error):
        run(url(server), tmp_path / "x.csv", monkeypatch, "--levels 2:4")
    assert not (tmp_path / "x.csv").exists()


def test_a_server_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="no server answers there"):
        run("http://127.0.0.1:9", tmp_path / "x.csv", monkeypatch)


@pytest.mark.parametrize("words, error", [("8", "'8' is not possible"), ("0:4", "'0:4' is not possible")])
def test_impossible_levels(capsys, words, error):
    with pytest.raises(SystemExit):
        race.parse_arguments(["--base-url", "x", "--output", "x.csv", "--levels", words])
    assert f"{error}; allowed: at once:in all, such as 8:16" in capsys.readouterr().err


def test_a_server_of_sglang(tiny_checkpoint, tmp_path, monkeypatch):
    """Also by SGLang's own benchmark, with the arguments of docs/guides/benchmarking.md."""
    with Server(tiny_checkpoint, "--disable-radix-cache", "--max-running-requests", "4") as server:
        (row,) = run(server.base_url, tmp_path / "x.csv", monkeypatch, "--levels 2:3")
        assert row["prompt_tokens"] == str(sum(one.prompt_tokens for one in requests(3, seed=7, longest=1000)))
        assert float(row["duration_s"]) > float(row["ttft_p95_s"]) >= float(row["ttft_mean_s"]) > 0
        assert row["sglang"] and row["dtype"] == "bfloat16"
        assert json.loads(row["options"])["disable_radix_cache"] is True

        results = tmp_path / "bench.jsonl"
        command = [sys.executable, "-m", "sglang.bench_serving", "--base-url", server.base_url]
        command += ["--model", str(tiny_checkpoint), "--output-file", str(results)]
        command += "--backend sglang --dataset-name random-ids --tokenize-prompt --random-range-ratio 0".split()  # noqa: SIM905
        command += "--random-input-len 600 --random-output-len 16 --num-prompts 3 --max-concurrency 2 --seed 7".split()  # noqa: SIM905
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=ANSWER_SECONDS)
        assert not done.returncode, done.stderr
    found = json.loads(results.read_text())
    assert found["completed"] == 3 and found["duration"] > 0
