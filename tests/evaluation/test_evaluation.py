"""The evaluation without a model: prompts, scores, files, refusals. Its way through a server is in serving/."""

import json
from random import Random

import pytest
from transformers import AutoTokenizer

from sala_sglang import cli
from sala_sglang.checkpoint.tokenizer import make_tokenizer
from sala_sglang.evaluation import heat_map, language, run
from sala_sglang.evaluation.client import Client, Outcome, score
from sala_sglang.evaluation.samples import TASKS, SampleMaker


@pytest.fixture(scope="module")
def maker(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(path, 510, 510, 511)
    return SampleMaker(AutoTokenizer.from_pretrained(path))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("tokens", [446, 512, 1000, 4096, 70_000])
def test_prompts_have_the_length_asked_for(maker, task, tokens):
    sample = maker.sample(Random(tokens), task, tokens, depth=0.5)
    assert sample.tokens == maker.count(sample.message) <= tokens
    assert tokens - sample.tokens < 2 * max(maker.filler_tokens)
    assert len(sample.values) == {"multi-query": 2, "multi-value": 3}.get(task, 1)


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_the_fact_lies_at_its_depth(maker, depth):
    message = maker.sample(Random(1), "key-value", 8192, depth).message
    text, question = message.split("\n\n")
    key = question.removeprefix("What is the code of the ").removesuffix("?")
    at = text.index(f"The code of the {key} is")
    assert abs(at / len(text) - depth) < 0.05


def test_samples_depend_on_the_seed_alone(maker):
    first, again, other = (maker.sample(Random(seed), "variables", 2048, 0.5) for seed in (1, 1, 2))
    assert first == again != other


def test_only_one_fact_answers_the_question(maker):
    for seed in range(20):
        message = maker.sample(Random(seed), "key-value", 20_000, 0.3).message
        text, question = message.split("\n\n")
        assert text.count(question.removeprefix("What is the code of the ").removesuffix("?")) == 1


def test_too_few_tokens_are_refused(maker):
    with pytest.raises(ValueError, match=r"20 are too few for the task 'variables'"):
        maker.sample(Random(0), "variables", 20, 0.5)


@pytest.mark.parametrize(
    ("reply", "values", "expected"),
    [
        ("The code is 7319.", ("7319",), 1.0),
        ("It is 1111, or 7319.", ("7319",), 0.0),
        ("The pass key is 73190.", ("7319",), 0.0),
        ("9110 and 7319", ("7319", "2204", "9110"), 2 / 3),
        ("", ("7319",), 0.0),
    ],
)
def test_scores(reply, values, expected):
    assert score(reply, values) == pytest.approx(expected)


def test_the_tasks_of_the_command_are_those_there_are():
    assert tuple(TASKS) == cli.EVAL_TASKS


def test_refused_requests_are_shown_and_not_counted(tmp_path):
    served, refused = Outcome(1.0, "7319"), Outcome(None, "", "too long")
    cells = [
        run.cell(("passkey", 1024, 0.0), [served, refused]),
        run.cell(("passkey", 1024, 1.0), [served, Outcome(0.0, "")]),
        run.cell(("passkey", 1 << 20, 0.0), [refused] * 2),
        run.cell(("passkey", 1 << 20, 1.0), [refused] * 2),
    ]
    assert [(c.score, c.served, c.refused) for c in cells] == [(1.0, 1, 1), (0.5, 2, 0), (None, 0, 2), (None, 0, 2)]
    assert cells[2].errors == ("too long",)
    heat_map.draw(tmp_path / "map.png", "model", cells)
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert [line.split() for line in run.table(cells)] == [["task", "1K", "1M"], ["passkey", "75%", "-"]]
    json.dumps([c.errors for c in cells])


@pytest.mark.parametrize(
    ("option", "value", "parts"),
    [
        ("--lengths", "1K,x", ["--lengths", "'x'", "16K"]),
        ("--lengths", "511", ["--lengths", "'511'", "from 512"]),
        ("--tasks", "poem", ["--tasks", "'poem'", "passkey"]),
        ("--samples", "0", ["--samples", "'0'", "from 1"]),
    ],
)
def test_bad_arguments(option, value, parts, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["eval", "--base-url", "http://127.0.0.1:9", "--out", str(tmp_path / "new"), option, value])
    message = capsys.readouterr().err
    assert caught.value.code == 2 and all(part in message for part in parts)


def test_lengths_have_no_bound_of_their_own():
    options = cli._parser().parse_args(["eval", "--base-url", "x", "--out", "y", "--lengths", "4M,2M,1000000"])
    assert options.lengths == (1_000_000, 2 << 20, 4 << 20)


def test_labels():
    cells = [run.cell(("passkey", length, 0.0), [Outcome(1.0, "7319")]) for length in (1 << 20, 4 << 20, 12_345_678)]
    lines = list(run.table(cells))
    assert [line.split() for line in lines] == [["task", "1M", "4M", "12345678"], ["passkey", "100%", "100%", "100%"]]
    assert len({len(line) for line in lines}) == 1
    assert [heat_map.percent(depth) for depth in (0.0, 0.125, 0.3333, 1.0)] == ["0 %", "12.5 %", "33.33 %", "100 %"]


def test_a_server_that_is_not_there(tmp_path, capsys):
    assert cli.main(["eval", "--base-url", "http://127.0.0.1:9/v1", "--out", str(tmp_path / "new")]) == 2
    assert "'http://127.0.0.1:9/v1' lists no models" in capsys.readouterr().err


def test_base_url_with_and_without_its_end():
    roots = {Client(f"http://127.0.0.1:9{end}", "name").root for end in ("", "/", "/v1", "/v1/")}
    assert roots == {"http://127.0.0.1:9"}


def test_chains_name_their_steps_in_order():
    task = language.box([("red", "fox"), ("shy", "owl")], "1234")
    assert task.facts[1] == "The box of the shy owl holds the box of the red fox." and task.values == ("1234",)
    assert task.answer == "The box of the shy owl holds the box of the red fox. The box of the red fox holds 1234."
