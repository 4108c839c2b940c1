"""Examples that ask a running server, on sala-tiny."""

import json
import re

import pytest

from tests.examples.conftest import EXAMPLES

ANSWERS = "The code of the red fox is 4711.", "The code of the shy owl is 2093."


def test_chat(trained_server, run_example):
    printed = run_example("chat", trained_server.base_url).splitlines()
    assert [line.removeprefix("assistant: ") for line in printed if line.startswith("assistant: ")] == list(ANSWERS)


def test_streaming(trained_server, run_example):
    text, times = run_example("streaming", trained_server.base_url).splitlines()
    assert text == "The old man opens the window in the morning. A child sings a song under the tree."
    tokens, first, each = re.fullmatch(r"(\d+) tokens: the first after (\d+) ms, .* one ([\d.]+) ms", times).groups()
    assert 10 < int(tokens) < 64 and int(first) > 0 and float(each) >= 0


def test_tools(trained_server, trained_checkpoint, run_example):
    if "tools" not in (trained_checkpoint / "chat_template.jinja").read_text():
        pytest.skip("the chat template knows no tools")
    call, answer = run_example("tools", trained_server.base_url).splitlines()
    assert call == "get_code({'animal': 'red fox'}) returns {\"code\": 4711}"
    # Which number it names would be luck: the weights were not trained on tools.
    assert re.fullmatch(r"The code of the red fox is \d{4}\.", answer)


def test_long_document(trained_server, run_example):
    trained_server.flush_cache()
    line = re.compile(r"(\d+) of (\d+) tokens cached, ([\d.]+) s: (.*)")
    first, second = (
        line.fullmatch(printed).groups()
        for printed in run_example("long_document", trained_server.base_url, 300).splitlines()
    )
    assert (first[3], second[3]) == ANSWERS
    assert first[0] == "0"
    cached, tokens = int(second[0]), int(second[1])
    assert cached % 64 == 0 and tokens - 128 < cached < tokens


def test_batch_file(trained_server, run_example, tmp_path):
    bad = {"custom_id": "bad", "url": "/v1/chat/completions", "body": {"model": "default", "messages": "none"}}
    lines = [*(EXAMPLES / "batch.jsonl").read_text().splitlines(), json.dumps(bad)]
    requests, answers = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    requests.write_text("\n".join(lines))
    printed = run_example("batch_file", requests, answers, trained_server.base_url)
    assert re.fullmatch(r"8 of 9 requests answered in [\d.]+ s\n", printed)
    found = {answer["custom_id"]: answer["response"] for answer in map(json.loads, answers.read_text().splitlines())}
    assert set(found) == {json.loads(line)["custom_id"] for line in lines}
    assert found["bad"]["status_code"] == 400 and "messages" in json.dumps(found["bad"]["body"])
    texts = [found[f"question-{number}"]["body"]["choices"][0]["message"]["content"] for number in range(1, 9)]
    assert texts[:3] == [*ANSWERS, " ".join(ANSWERS)] and texts[7] == "The capital of France is Paris."


def test_evaluation(trained_server, run_example, tmp_path):
    printed = run_example("evaluation", trained_server.base_url, tmp_path / "out", "512,1K")
    found = {int(tokens): int(share) for tokens, share in re.findall(r"(?m)^(\d+) tokens: (\d+)% found$", printed)}
    assert found.keys() == {512, 1024} and min(found.values()) >= 90
    assert (tmp_path / "out" / "heat_map.png").read_bytes().startswith(b"\x89PNG")
