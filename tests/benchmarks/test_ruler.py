"""The RULER benchmark over HTTP: rows, resumption, refusals; where lm-eval is installed, what is sent and scored."""

import sys
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from benchmarks.common import results_file
from benchmarks.evaluation import ruler
from benchmarks.evaluation.ruler import COLUMNS
from benchmarks.evaluation.ruler_settings import SETTINGS, Found
from sala_sglang.evaluation.client import ANSWER_TOKENS
from tests.evaluation.fake_server import FakeServer

HARNESS = "benchmarks.evaluation.ruler_harness"
NEW_TOKENS = 128  # of an answer to a needle, as RULER has it


class Gone(RuntimeError):
    pass


class Impossible(ValueError):
    pass


class FakeHarness(SimpleNamespace):
    """Finds everything, and keeps what it was asked for; ``goes`` after so many cells."""

    Unanswered, Impossible = (Gone,), Impossible

    def ask(self, client, tokenizer, settings, task, length, options) -> Found:
        if len(self.asked) == self.goes:
            raise Gone("no answer")
        if task == "ruler_cwe":
            raise Impossible("too long")
        self.asked.append((settings, task, length))
        return Found(1.0, options.samples, length - 9, length - 1, 0)


@pytest.fixture
def harness(monkeypatch):
    fake = FakeHarness(asked=[], goes=None)
    monkeypatch.setitem(sys.modules, HARNESS, fake)
    monkeypatch.setattr("benchmarks.evaluation.ruler_harness", fake, raising=False)
    monkeypatch.setattr(ruler, "version", lambda package: "0")  # lm-eval need not be there
    return fake


def run(server, output, words, *more):
    ruler.main(["--base-url", server.base_url, "--output", str(output), *words.split(), *more])
    return results_file.read(output)


def test_a_row_for_every_task_and_length_and_none_twice(harness, trained_checkpoint, tmp_path):
    words = "--lengths 1024,2048 --tasks niah_single_1,ruler_vt --samples 5"
    with FakeServer(trained_checkpoint, 4096) as server:
        harness.goes = 3
        with pytest.raises(SystemExit, match=r"ruler_vt at 2048 tokens: Gone.*the same command goes on"):
            run(server, tmp_path / "rows.csv", words)
        harness.goes = None
        rows = run(server, tmp_path / "rows.csv", words)
        assert run(server, tmp_path / "rows.csv", words) == rows
    recipe = SETTINGS["recipe"]
    assert harness.asked == [(recipe, task, n) for n in (1024, 2048) for task in ("niah_single_1", "ruler_vt")]
    assert tuple(rows[0]) == COLUMNS
    assert [(row["task"], row["length"], row["score"]) for row in rows] == [
        (task, str(length), "1.0") for _, task, length in harness.asked
    ]


def test_what_lm_eval_cannot_make_is_left_out(harness, trained_checkpoint, tmp_path, capsys):
    with FakeServer(trained_checkpoint, 4096) as server:
        rows = run(server, tmp_path / "rows.csv", "--lengths 1024 --tasks ruler_cwe,ruler_fwe --samples 5")
    assert [row["task"] for row in rows] == ["ruler_fwe"]
    assert "ruler_cwe at 1024 tokens is left out: too long" in capsys.readouterr().out


def test_tasks_of_the_own_evaluation_are_asked_by_it_once(harness, trained_checkpoint, tmp_path):
    words = "--lengths 1024 --tasks passkey,ruler_vt --samples 10 --settings"
    with FakeServer(trained_checkpoint, 4096) as server:
        rows = run(server, tmp_path / "rows.csv", words, "recipe,bos")
    assert [(row["harness"], row["settings"], row["task"]) for row in rows] == [
        ("sala-sglang eval", "", "passkey"),
        ("lm-eval", "recipe", "ruler_vt"),
        ("lm-eval", "bos", "ruler_vt"),
    ]
    assert len(server.prompts) == int(rows[0]["answered"]) == 10


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--tasks niah", "--tasks has 'niah'; allowed: niah_single_1,"),
        ("--settings chat", "--settings has 'chat'; allowed: recipe,"),
        ("--lengths 4K", "--lengths has '4K'; allowed: numbers of tokens from 512 on"),
        ("--lengths 511", "--lengths has '511'; allowed"),
        ("--samples 0", "--samples is 0; allowed: 1 or more"),
        ("--samples 501", "--samples is 501; allowed: up to 500"),
        ("--tasks passkey --samples 7", "--samples is 7; allowed: multiples of 5"),
    ],
)
def test_impossible_arguments(capsys, words, error):
    with pytest.raises(SystemExit):
        ruler.parse_arguments(["--base-url", "http://x", "--lengths", "1024", "--output", "x.csv", *words.split()])
    assert error in capsys.readouterr().err


def test_lengths_that_the_server_would_refuse_or_shorten(harness, trained_checkpoint, tmp_path):
    with (
        FakeServer(trained_checkpoint, 4096, lists_context=True) as server,
        pytest.raises(SystemExit, match="--lengths has 4096; allowed: up to 3840, 256 less than the server's context"),
    ):
        run(server, tmp_path / "rows.csv", "--lengths 1024,4096")
    assert not harness.asked


def test_without_lm_eval_the_message_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, HARNESS, None)
    monkeypatch.delattr("benchmarks.evaluation.ruler_harness", raising=False)
    with pytest.raises(SystemExit, match=r"RULER needs lm-eval: pip install 'sala-sglang\[ruler\]'"):
        ruler.main(["--base-url", "http://x", "--lengths", "1024", "--output", str(tmp_path / "rows.csv")])


class Recording(FakeServer):
    """Keeps every body, and answers whole prompts as it answers messages, also such as have no number."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.bodies = []

    def answer(self, body: dict) -> tuple[int, dict]:
        self.bodies.append(body)
        given = body["messages"][0]["content"] if "messages" in body else body["prompt"]
        text = given if isinstance(given, str) else self.tokenizer.decode(given[0])
        status, answer = super().answer(body | {"messages": [{"role": "user", "content": f"{text} 0000"}]})
        for choice in answer.get("choices", ()):
            choice["text"] = choice["message"]["content"]
        return status, answer


@pytest.fixture
def lm_eval(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("lm_eval", reason="asks through lm-eval: pip install 'sala-sglang[ruler]'")


@pytest.fixture
def asked(lm_eval, trained_checkpoint, tmp_path):
    """A function from settings to the rows and bodies of two prompts each."""

    def ask(settings, words="--lengths 2560 --tasks niah_multikey_2,sala_key-value"):
        with Recording(trained_checkpoint, 4096, lists_context=True) as server:
            rows = run(server, tmp_path / "rows.csv", f"{words} --samples 2 --concurrency 2 --settings", settings)
        return rows, server.bodies

    return ask


def prompt_ids(trained_checkpoint, body: dict) -> list[int]:
    """What a server makes of the messages, and of the answer that they begin."""
    tokenizer = AutoTokenizer.from_pretrained(trained_checkpoint)
    *messages, begun = body["messages"]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) + begun["content"]
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_recipe_sends_the_whole_prompt_once_and_greedily(asked, trained_checkpoint):
    rows, bodies = asked("recipe")
    for body in bodies:
        assert [message["role"] for message in body["messages"]] == ["user", "assistant"]
        assert (body["temperature"], body["stop"], body["continue_final_message"]) == (0.0, [], True)
        assert body["chat_template_kwargs"] == {"enable_thinking": False}
        assert "<|im_start|>" not in body["messages"][0]["content"]
    needles, own = bodies[:2], bodies[2:]
    assert {body["max_tokens"] for body in needles} == {NEW_TOKENS} and {body["max_tokens"] for body in own} == {64}
    assert all(2560 - NEW_TOKENS - 300 < len(prompt_ids(trained_checkpoint, body)) < 2560 for body in needles)
    assert all("special magic number" in body["messages"][0]["content"] for body in needles)
    assert all(body["messages"][-1]["content"].endswith(" is") for body in bodies)
    assert len({body["messages"][0]["content"] for body in bodies}) == 4
    assert [int(row["answered"]) for row in rows] == [2, 2]
    assert all(int(row["prompt_tokens_max"]) > 2000 for row in rows)


def test_prompts_depend_on_their_task_and_length_alone(asked):
    _, first = asked("recipe", "--lengths 2560 --tasks niah_multikey_2,ruler_fwe,niah_multikey_3")
    _, other = asked("answer not begun", "--lengths 2560 --tasks niah_multikey_3,niah_multikey_2,ruler_fwe")
    texts = [{body["messages"][0]["content"] for body in bodies} for bodies in (first, other)]
    assert texts[0] == texts[1] and len(texts[0]) == len(first) == 6


def test_words_to_count_are_the_same_in_every_run(lm_eval, trained_checkpoint):
    harness = ruler.load_harness()
    first, again = (harness.make_task("ruler_cwe", 8192, str(trained_checkpoint), 2)[1].dataset for _ in range(2))
    assert first["test"]["input"] == again["test"]["input"]


def test_token_ids_are_those_of_the_recipe_and_a_short_max_length_cuts_their_begin(asked, trained_checkpoint):
    _, messages = asked("recipe", "--lengths 2560 --tasks niah_multikey_2")
    _, whole = asked("token ids", "--lengths 2560 --tasks niah_multikey_2")
    _, cut = asked("max_length 2048", "--lengths 2560 --tasks niah_multikey_2")
    _, bos = asked("bos", "--lengths 2560 --tasks niah_multikey_2")
    wanted = sorted(prompt_ids(trained_checkpoint, body) for body in messages)
    assert sorted(body["prompt"][0] for body in whole) == wanted
    assert sorted(body["prompt"][0] for body in cut) == sorted(ids[-(2047 - NEW_TOKENS) :] for ids in wanted)
    assert sorted(body["prompt"][0][1:] for body in bos) == wanted


def test_the_template_is_doubled_or_missing_where_that_is_asked_for(asked):
    _, twice = asked("template twice", "--lengths 1024 --tasks niah_single_1")
    _, bare = asked("no template", "--lengths 1024 --tasks niah_single_1")
    assert all(body["messages"][0]["content"].startswith("<|im_start|>user\n") for body in twice)
    assert all(body["prompt"].startswith("A special magic number") and "<|im" not in body["prompt"] for body in bare)


def test_scores_are_the_share_of_what_was_asked_for(asked, monkeypatch):
    def answer(self, body):
        self.bodies.append(body)
        status, answer = FakeServer.answer(self, body)
        question = body["messages"][-1]["content"].removesuffix(" is")
        fact = body["messages"][0]["content"].rsplit(f"{question} is ", 1)[1][:4]
        answer["choices"][0]["message"]["content"] = f" {fact}." if body is self.bodies[0] else " 0000."
        return status, answer

    monkeypatch.setattr(Recording, "answer", answer)
    rows, bodies = asked("recipe", "--lengths 1024 --tasks sala_key-value")
    assert [body["max_tokens"] for body in bodies] == [ANSWER_TOKENS] * 2
    assert (rows[0]["score"], rows[0]["cut"]) == ("0.5", "2")


@pytest.mark.parametrize(
    ("task", "length", "reason"),
    [
        ("ruler_cwe", 1024, "the shortest prompt of lm-eval with something to find is longer"),
        ("ruler_vt", 4096, "its worked example has"),  # lm-eval alone would never end
    ],
)
def test_what_cannot_be_made_with_a_tokenizer_is_refused(lm_eval, trained_checkpoint, task, length, reason):
    harness = ruler.load_harness()
    with pytest.raises(harness.Impossible, match=reason):
        harness.make_task(task, length, str(trained_checkpoint), 2)


def test_a_server_that_refuses_ends_the_run(lm_eval, trained_checkpoint, tmp_path):
    with (
        Recording(trained_checkpoint, 1024) as server,
        pytest.raises(SystemExit, match=r"niah_single_1 at 2048 tokens: ClientResponseError"),
    ):
        run(server, tmp_path / "refused.csv", "--lengths 2048 --tasks niah_single_1 --samples 2")
    assert not (tmp_path / "refused.csv").exists()
