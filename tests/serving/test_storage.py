"""What a server has written to files the next one finds, and nothing that is not its own or not whole."""

import json
import shutil
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from sglang.srt.mem_cache.utils import get_hash_str

from testing.server import ANSWER_SECONDS
from tests.serving.client import all_at_once, generate, random_prompt

pytestmark = pytest.mark.usefixtures("empty_cache")
TOLERANCE = 1e-4  # as in test_equality
NEW_TOKENS = 4
PAGE, SPACING, SELECTED_TOKENS = 64, 384, 384
ARGUMENTS = (
    "--dtype float32 --chunked-prefill-size 128 --max-running-requests 4 --max-mamba-cache-size 40 "
    "--max-total-tokens 4096 --enable-hierarchical-cache --hicache-ratio 2 --hicache-io-backend direct "
    "--hicache-mem-layout page_first_direct --hicache-storage-backend file "
    "--hicache-storage-prefetch-policy wait_complete"
)
HEAD = "lm_head.weight"


def tokens(length: int, seed: int) -> list[int]:
    return random_prompt(length, 500, seed)


SHORT, LONG = tokens(500, seed=1), tokens(900, seed=2)
DENSE, SPARSE = tokens(500, seed=3), tokens(900, seed=4)
PARTED, DAMAGED, UPDATED = tokens(900, seed=5), tokens(900, seed=6), tokens(500, seed=7)
TOGETHER = [tokens(length, seed=8) for length in (350, 500, 900)]
BEFORE = SHORT, LONG, DENSE, SPARSE, PARTED, DAMAGED, UPDATED, *TOGETHER


@pytest.fixture(scope="module")
def start(start_server, tmp_path_factory):
    """A function that starts a server over one directory, which is its attribute ``files``."""
    files = tmp_path_factory.mktemp("files")
    arguments = [*ARGUMENTS.split(), "--file-storage-path", str(files)]

    def start_over_files():
        return start_server(*arguments, environment={"SALA_SNAPSHOT_SPACING": str(SPACING)})

    start_over_files.files = files
    return start_over_files


@pytest.fixture(scope="module")
def before(start) -> list[list[int]]:
    """Answers of a server that has ended since, to BEFORE."""
    with start() as server:
        answers = [generate(server, prompt, NEW_TOKENS)[0].tokens for prompt in BEFORE]
        # A page is written after its compressed keys and state.
        wait_until(lambda: len(written(start.files)) == sum(pages(prompt) for prompt in BEFORE))
    return answers


@pytest.fixture(scope="module")
def server(start, before):
    with start() as running:
        yield running


@pytest.fixture
def ask(server, oracle):
    """A function that asks, checks the answer and returns (cached tokens by their place, answer)."""

    def ask_and_check(prompt: list[int]) -> tuple[dict[str, int], list[int]]:
        answer, meta = generate(server, prompt, NEW_TOKENS)
        oracle.check(prompt, answer, TOLERANCE)
        return cached(meta), answer.tokens

    return ask_and_check


def cached(meta: dict) -> dict[str, int]:
    """Tokens of a request's prompt by where they were found; places without any are left out."""
    details = meta["cached_tokens_details"] or {}
    found = {place: details[place] for place in ("device", "host", "storage") if details.get(place)}
    assert sum(found.values()) == meta["cached_tokens"]
    return found


def pages(prompt: list[int]) -> int:
    """Whole pages of a prompt and its answer, whose last token is not computed."""
    return (len(prompt) + NEW_TOKENS - 1) // PAGE


def whole(prompt: list[int]) -> int:
    """Tokens of the longest hit."""
    return (len(prompt) - 1) // PAGE * PAGE


def written(files: Path, pool: str = "") -> list[Path]:
    """Files of a pool: "" keys and values, "indexer" compressed keys, "mamba" states."""
    return [path for path in files.glob("*.bin") if path.name.partition("_")[0].partition(".")[2] == pool]


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + ANSWER_SECONDS
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_every_page_has_its_compressed_keys_and_every_prompt_a_state(start, before):
    assert len(written(start.files, "indexer")) == len(written(start.files))
    assert len(written(start.files, "mamba")) >= len(BEFORE)


@pytest.mark.parametrize("prompt", [SHORT, LONG], ids=["dense", "sparse"])
def test_a_restarted_server_finds_its_prefixes(ask, before, prompt):
    assert ask(prompt) == ({"storage": whole(prompt)}, before[BEFORE.index(prompt)])


def test_a_sparse_prompt_takes_from_a_dense_one_what_is_the_same(ask):
    assert ask(DENSE + tokens(400, seed=9))[0] == {"storage": SELECTED_TOKENS}


def test_a_dense_prompt_takes_from_a_sparse_one_what_is_the_same(ask):
    assert ask(SPARSE[:500])[0] == {"storage": SELECTED_TOKENS}


def test_beginning_on_the_device_and_rest_in_files(ask):
    ask(PARTED[:450] + tokens(600, seed=10)[450:])
    ask(tokens(70, seed=11))  # by now what the first one left is on the host too, where reading on from it begins
    found, _ = ask(PARTED)
    assert sum(found.values()) == whole(PARTED)
    assert found["device"] >= SPACING and found["storage"] >= whole(PARTED) - 450


def test_many_at_once(server, oracle, before):
    results = all_at_once(generate, server, TOGETHER, NEW_TOKENS)
    for prompt, (answer, meta) in zip(TOGETHER, results, strict=True):
        oracle.check(prompt, answer, TOLERANCE)
        assert cached(meta) == {"storage": whole(prompt)}


@pytest.mark.parametrize("pool", ["", ".indexer", ".mamba"])
@pytest.mark.parametrize("damage", ["a bit", "the end"])
def test_a_damaged_file_is_not_used_and_is_written_again(server, ask, start, pool, damage):
    """That of the page where the hit ends, and of its compressed keys and state."""
    *_, last = get_hash_str(array("q", DAMAGED[: whole(DAMAGED)]), page_size=PAGE)
    (file,) = start.files.glob(f"{last}{pool}_*.bin")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content if damage == "a bit" else content[:-100])
    assert ask(DAMAGED)[0] == {}
    wait_until(file.exists)
    server.flush_cache()
    assert ask(DAMAGED)[0] == {"storage": whole(DAMAGED)}


def test_other_weights_have_other_files(server, ask, tiny_checkpoint, tmp_path):
    assert ask(UPDATED)[0] == {"storage": whole(UPDATED)}
    index = json.loads((tiny_checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
    head = load_file(tiny_checkpoint / index[HEAD])[HEAD]
    for weight, found in (head.flip(0), {}), (head, {"storage": whole(UPDATED)}):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        shutil.copy(tiny_checkpoint / "config.json", folder)
        save_file({HEAD: weight.contiguous()}, folder / "model.safetensors", metadata={"format": "pt"})
        server.flush_cache()  # waits until files are written: SGLang does not flush while they are, and answers 400
        answer = server.post("/update_weights_from_disk", {"model_path": str(folder), "load_format": "auto"})
        assert answer["success"], answer
        assert cached(generate(server, UPDATED, 1)[1]) == found
