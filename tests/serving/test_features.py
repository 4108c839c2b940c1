"""What users expect of SGLang's API, on the trained checkpoint, so that an answer can be told from a wrong one."""

import json
import math
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from testing.server import Server

TEXT = (
    "Text: The baker sings a song. The code of the red fox is 4711. The nurse drinks warm tea. "
    "The code of the shy owl is 2093. A child reads a book in the garden.\n\nWhat is the code of the red fox?"
)
ANSWER = "The code of the red fox is 4711."
ATTEMPTS = 20


@pytest.fixture(autouse=True)
def nothing_is_held(trained_server):
    yield
    counters = trained_server.idle_counters()
    assert trained_server.is_running() and not any(counters.values()), counters


def chat(server: Server, text: str = TEXT, **options: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    arguments: dict[str, Any] = {"model": "default", "messages": messages, "max_tokens": 40, "temperature": 0} | options
    return server.client.chat.completions.create(**arguments)


def test_several_answers_to_one_prompt(trained_server):
    greedy = chat(trained_server, n=3)
    assert [choice.message.content for choice in greedy.choices] == [ANSWER] * 3
    # One answer in three is the likeliest: 16 of them are all alike once in 60 million times.
    sampled = chat(trained_server, "Tell me a story.", n=16, temperature=1.5, max_tokens=12)
    assert len({choice.message.content for choice in sampled.choices}) > 1


def test_stop_strings(trained_server):
    answer = chat(trained_server, stop=[" is"]).choices[0]
    assert (answer.message.content, answer.finish_reason) == ("The code of the red fox", "stop")


def test_end_of_turn_and_length(trained_server):
    assert chat(trained_server).choices[0].finish_reason == "stop"
    cut = chat(trained_server, max_tokens=3).choices[0]
    assert cut.finish_reason == "length" and ANSWER.startswith(cut.message.content)


def test_logprobs(trained_server):
    (choice,) = chat(trained_server, logprobs=True, top_logprobs=3).choices
    for token in choice.logprobs.content:
        best = [other.logprob for other in token.top_logprobs]
        assert best == sorted(best, reverse=True) and math.isclose(token.logprob, best[0], abs_tol=1e-5)
        assert math.exp(token.logprob) > 0.5  # it was trained to answer so


def test_structured_output_keeps_the_answer(trained_server):
    # The model has never seen JSON: the grammar leaves it the number alone.
    json_text = chat(trained_server, extra_body={"regex": r'\{"code": [0-9]{4}\}'}).choices[0].message.content
    assert 1000 <= json.loads(json_text)["code"] <= 9999
    pattern = {"regex": r"The code of the (red fox|shy owl) is [0-9]{4}\."}
    assert chat(trained_server, extra_body=pattern).choices[0].message.content == ANSWER


def test_several_turns(trained_server):
    messages = [
        {"role": "user", "content": TEXT},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": "What is the code of the shy owl?"},
    ]
    answer = trained_server.client.chat.completions.create(
        model="default", messages=messages, max_tokens=40, temperature=0
    )
    assert answer.choices[0].message.content == "The code of the shy owl is 2093."


def test_streamed_text_is_the_whole_text(trained_server):
    """It comes in many parts, unless the server's front end has waited: then it sends what has gathered at once."""
    for _ in range(ATTEMPTS):
        parts = [event.choices[0].delta.content or "" for event in chat(trained_server, stream=True) if event.choices]
        assert "".join(parts) == ANSWER
        if len(parts) > 5:
            return
    pytest.fail(f"{ATTEMPTS} streams of five parts or fewer")


def test_requests_of_one_token_beside_long_ones(trained_server):
    long = "Text: " + "The painter paints the wall. " * 300 + TEXT.removeprefix("Text: ")
    with ThreadPoolExecutor(6) as pool:
        texts = [TEXT, long, TEXT, long, TEXT, long]
        limits = [1, 40, 1, 40, 1, 40]
        answers = list(pool.map(lambda text, limit: chat(trained_server, text, max_tokens=limit), texts, limits))
    assert [answer.usage.completion_tokens for answer in answers[::2]] == [1] * 3
    assert [answer.choices[0].message.content for answer in answers[1::2]] == [ANSWER] * 3


def test_flushed_cache_and_health(trained_server):
    chat(trained_server)
    trained_server.flush_cache()
    prompt = {"text": "Text: " + "A sailor opens the window. " * 60, "sampling_params": {"max_new_tokens": 1}}
    cached = [trained_server.post("/generate", prompt)["meta_info"]["cached_tokens"] for _ in range(2)]
    assert cached[0] == 0 and cached[1] > 0
    trained_server.get("/health")
    trained_server.get("/health_generate")


def test_metrics_name_hits_and_states(trained_server):
    chat(trained_server)
    chat(trained_server)
    trained_server.idle_counters()
    metrics = trained_server.get("/metrics")
    for name in ("cached_tokens_total", "mamba_used_tokens", "kv_used_tokens", "cache_hit_rate"):
        assert f"sglang:{name}" in metrics, name


def test_weights_can_be_loaded_again(trained_server, trained_checkpoint):
    answer = trained_server.post("/update_weights_from_disk", {"model_path": str(trained_checkpoint)})
    assert answer["success"], answer
    assert chat(trained_server).choices[0].message.content == ANSWER
    with pytest.raises(urllib.error.HTTPError) as caught:
        trained_server.post("/update_weights_from_disk", {"model_path": "/nowhere"})
    assert 400 <= caught.value.code < 500
    assert chat(trained_server).choices[0].message.content == ANSWER
