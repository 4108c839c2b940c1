"""A server that answers HTTP from several processes: the same checks in each, and none outlives the launcher."""

import signal
import urllib.error
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from testing.server import ANSWER_SECONDS
from tests.serving.client import complete, random_prompt
from tests.serving.oracle import Oracle

TOLERANCE = 1e-4  # as in test_equality
IMPOSSIBLE = {
    "top_k": ({"text": "a", "sampling_params": {"max_new_tokens": 2, "top_k": 1 << 40}}, f"top_k = {1 << 40}"),
    "input_ids": ({"input_ids": [5, 600], "sampling_params": {"max_new_tokens": 2}}, "input_ids = 600"),
    "bias": ({"text": "a", "sampling_params": {"logit_bias": {"5": 1e30}}}, "logit_bias = 1e+30"),
}


@pytest.fixture(scope="module")
def server(start_server):
    with start_server("--dtype", "float32", "--tokenizer-worker-num", "2") as running:
        yield running


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_would_end_the_scheduler_is_refused_by_every_process(server, what):
    body, words = IMPOSSIBLE[what]

    def refused(_) -> str:
        with pytest.raises(urllib.error.HTTPError) as error:
            server.post("/generate", body)
        assert error.value.code == 400
        return error.value.read().decode()

    with ThreadPoolExecutor(8) as pool:  # connections of their own, so that both processes get some
        assert all(words in said and "allowed: " in said for said in pool.map(refused, range(16)))


def test_the_next_request_is_answered(server, tiny_checkpoint):
    prompt = random_prompt(90, 400, seed=1)
    Oracle(tiny_checkpoint).check(prompt, complete(server.client, prompt, 4), TOLERANCE)


def test_no_process_outlives_its_launcher(server):
    launcher = psutil.Process(server.process.pid)
    processes = launcher.children(recursive=True)
    named = {name for process in processes for name in ("scheduler", "detokenizer") if name in process.name().lower()}
    assert len(processes) >= 4 and len(named) == 2, [process.name() for process in processes]
    launcher.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(processes, timeout=ANSWER_SECONDS)
    assert not alive, [process.cmdline() for process in alive]
