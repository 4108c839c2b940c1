"""What ``sala-sglang compare`` makes of what servers say; servers themselves are in tests/serving."""

import json
import threading
from dataclasses import astuple, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.evaluation import quantised
from sala_sglang import cli
from sala_sglang.evaluation.client import Unreachable
from sala_sglang.hf import MiniCPMSALAForCausalLM
from sala_sglang.quantization import divergence, layerwise, texts
from sala_sglang.quantization.comparison.blocks import agreement, run_both
from sala_sglang.quantization.comparison.bounds import BOUNDS
from sala_sglang.quantization.comparison.checks import check, growth, lost
from sala_sglang.quantization.comparison.command import make_texts
from sala_sglang.quantization.comparison.logprobs import Compared, ask, compare, least_kl, say
from sala_sglang.quantization.divergence import Divergence
from sala_sglang.quantization.layerwise import LayerwiseModel
from sala_sglang.quantization.weights import CheckpointWeights

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tokenizer(trained_checkpoint):
    return AutoTokenizer.from_pretrained(trained_checkpoint)


def distributions(sharpness: float, seed: int) -> torch.Tensor:
    """Log-probabilities [2, 200, 60] of two models that are alike."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(200, 60, generator=generator)
    both = torch.stack([logits, logits + 0.3 * torch.randn(200, 60, generator=generator)])
    return both.double().log_softmax(-1)


def named(row: torch.Tensor, count: int) -> dict[int, float]:
    found = row.topk(count)
    return dict(zip(found.indices.tolist(), found.values.tolist(), strict=True))


@pytest.mark.parametrize("sharpness", [0.5, 3.0])
def test_kl_of_what_servers_name_is_never_above_the_whole(sharpness):
    first, second = distributions(sharpness, seed=1)
    exact = (first.exp() * (first - second)).sum(-1)
    own = torch.arange(200) % 60
    by_count = []
    for count in (1, 5, 20, 60):
        rows = zip(first, second, own, strict=True)
        found = [
            least_kl(named(p, count), named(q, count), int(token), p[token].item(), q[token].item())
            for p, q, token in rows
        ]
        by_count.append(torch.tensor(found, dtype=torch.float64))
    assert all((found <= exact + 1e-6).all() for found in by_count)
    # All is seen where servers name all, and the more the more they name, on the whole.
    torch.testing.assert_close(by_count[-1], exact, rtol=1e-6, atol=2e-6)
    means = [found.mean().item() for found in by_count]
    assert means == sorted(means) and means[-2] > 0.3 * means[-1]


def test_a_token_that_one_server_does_not_name_counts():
    """It is a part of the rest in both, whose probabilities then differ."""
    first, second = {1: -0.1, 2: -3.0}, {2: -0.1, 3: -3.0}
    assert least_kl(first, second, 4, -20.0, -20.0) > 1.0


def test_distributions_of_whole_vocabularies():
    first, second = distributions(3.0, seed=2)
    tokens = torch.arange(200) % 60
    found = divergence.of_distributions(first, second, tokens, torch.arange(1, 201))
    torch.testing.assert_close(
        found.kl, torch.nn.functional.kl_div(second, first, log_target=True, reduction="none").sum(-1)
    )
    one = divergence.summary(found)
    assert one.perplexity == pytest.approx(torch.nn.functional.nll_loss(first, tokens).exp().item())
    worse = torch.nn.functional.nll_loss(second, tokens) - torch.nn.functional.nll_loss(first, tokens)
    assert one.perplexity_ratio == pytest.approx(worse.exp().item())
    assert one.kl_tail == found.kl.max() and one.same_choice == (first.argmax(-1) == second.argmax(-1)).double().mean()


def test_buckets_of_positions():
    positions = torch.tensor([1, 1023, 1024, 2047, 5000])
    kl = torch.arange(5).double()
    found = Divergence(positions, kl, torch.ones(5, dtype=torch.bool), torch.zeros(5, 2, dtype=torch.float64))
    buckets = [(begin, end, one.tokens, one.kl_mean) for begin, end, one in divergence.by_position(found)]
    assert buckets == [(0, 1024, 2, 0.5), (1024, 2048, 2, 2.5), (4096, 8192, 1, 4.0)]


def compared(late: float = 1.0, kl: float = 1e-3, loss: float = 0.0, missed: int = 0) -> list[Compared]:
    """A text of 4,096 tokens and 200 items. late: what KL is times behind 1,024 tokens. missed: items of the second."""
    positions = torch.arange(1, 4097)
    losses = torch.ones(4096, 2, dtype=torch.float64)
    losses[:, 1] += loss
    found = torch.ones(200, 2, dtype=torch.bool)
    found[:missed, 1] = False
    values = kl * torch.where(positions < 1024, 1.0, late).double()
    return [Compared(Divergence(positions, values, torch.ones(4096, dtype=torch.bool), losses), found)]


BROKEN = {
    "growth of KL": {"late": 200.0},
    "KL mean": {"kl": 0.2},
    "perplexity ratio": {"loss": 0.2},
    "lost items": {"missed": 60},
}


def broken(found: list[Compared], blocks: dict[int, float] | None = None) -> set[str]:
    return {one.measure for one in check(found, blocks or {}, BOUNDS["w4a16"]) if not one.within}


def test_alike_is_within_bounds():
    assert not broken(compared(), {0: 1.0})


@pytest.mark.parametrize("measure", BROKEN)
def test_every_bound_can_be_broken(measure):
    assert measure in broken(compared(**BROKEN[measure]))


def test_other_choices_and_other_blocks_break_theirs():
    [one] = compared()
    others = replace(one, divergence=replace(one.divergence, same_choice=torch.zeros(4096, dtype=torch.bool)))
    assert broken([others]) == {"same first choice"}
    assert broken([one], {0: 1.0, 4: 0.1}) == {"same blocks in layer 4"}


def test_growth_needs_a_difference():
    """Of two models that differ by rounding alone late tokens may be many times as far apart."""
    assert growth(compared(late=50.0, kl=1e-8)) < 1.01


def test_growth_is_that_of_the_longest_texts():
    """Short ones are dense, whose KL is another one."""
    [one] = compared(late=200.0)
    first = Divergence(*(part[:600] for part in vars(one.divergence).values()))
    short = replace(one, divergence=replace(first, kl=100 * first.kl))
    assert growth([one, short]) == growth([one]) > 20 and growth([short]) == 1.0


def test_lost_items_are_counted_against_those_that_are_won():
    found = torch.tensor([[1, 0], [1, 0], [0, 1], [1, 1], [0, 0], [1, 0], [1, 1], [1, 1]]).bool()
    share, error = lost(found)
    assert share == 2 / 8
    assert error == pytest.approx(torch.tensor([1, 1, -1, 0, 0, 1, 0, 0.0]).std(correction=0).item() / 8**0.5)


def test_items_are_the_numbers_of_the_answers(tokenizer):
    for text in make_texts(tokenizer, (600, 3000), 30, seed=3):
        spelt = tokenizer.decode(text.tokens)
        assert len(text.tokens) in (600, 3000)
        for item in text.items:
            number = tokenizer.decode(text.tokens[item.start : item.stop])
            assert len(number) == 4 and number.isdigit(), number
            # Where it was told, and in an answer.
            assert spelt.count(number) >= 2


def test_rounds_hold_as_many_items_as_are_asked_for(tokenizer):
    found = list(make_texts(tokenizer, (600, 1000), 20, seed=0))
    assert len(found) % 2 == 0 and sum(len(text.items) for text in found) >= 20
    assert [text.tokens for text in make_texts(tokenizer, (600, 1000), 20, seed=0)] == [text.tokens for text in found]
    assert [text.tokens for text in make_texts(tokenizer, (600,), 1, seed=1)] != [found[0].tokens]


def test_texts_of_a_user(tokenizer, tmp_path):
    words = "The old man opens the window in the morning. "
    (tmp_path / "book.txt").write_text(words * 500)
    found = texts.read(tmp_path / "book.txt", tokenizer, [300, 1200])
    assert [len(text) for text in found[:4]] == [1200, 300, 1200, 300]
    assert [token for text in found for token in text][:5000] == tokenizer(words * 500)["input_ids"][:5000]
    (tmp_path / "few.txt").write_text(words)
    with pytest.raises(ValueError, match=r"'.*few.txt' has no text of 256 tokens"):
        texts.read(tmp_path / "few.txt", tokenizer, [300])


def test_generated_texts_are_long_enough_for_selection():
    lengths = texts.default_lengths(CheckpointWeights(ROOT / "checkpoints" / "sala-tiny").config)
    assert sum(length for length in lengths if length >= 1024) > sum(lengths) / 2


def test_blocks_of_one_model_are_the_same_and_of_another_are_not(trained_checkpoint, tokenizer):
    [text] = make_texts(tokenizer, (1536,), 1, seed=0)
    model, rounded, damaged = (
        LayerwiseModel(weights, "cpu", torch.float32)
        for weights in (
            CheckpointWeights(trained_checkpoint),
            CheckpointWeights(ROOT / "checkpoints" / "sala-tiny-w4a16"),
            Turned(trained_checkpoint),
        )
    )
    assert agreement(model, model, [text.tokens]) == {0: 1.0, 4: 1.0, 8: 1.0}
    of_rounded, of_damaged = (agreement(model, other, [text.tokens]) for other in (rounded, damaged))
    assert all(BOUNDS["w4a16"].same_blocks <= share < 1 for share in of_rounded.values()), of_rounded
    assert of_damaged[0] < BOUNDS["w4a16"].same_blocks
    with pytest.raises(ValueError, match="no text has dense_len = 1024 tokens"):
        agreement(model, model, [text.tokens[:1000]])


class Turned(CheckpointWeights):
    """Keys of the first layer are those of other inputs."""

    def weight(self, name: str) -> torch.Tensor:
        found = super().weight(name)
        return found.roll(7, dims=1) if name == "model.layers.0.self_attn.k_proj.weight" else found


@pytest.mark.parametrize("recipe", BOUNDS)
def test_bounds_are_those_of_the_rows(recipe):
    path = ROOT / "benchmarks" / "results" / "evaluation" / "quantised.csv"
    assert quantised.bounds(path, recipe, "1K,2K,4K") == BOUNDS[recipe]


def test_bounds_stand_in_the_guide():
    guide = (ROOT / "docs" / "guides" / "quantised_weights.md").read_text()
    table = guide.split("| sala-tiny | `--bounds fp8` | `--bounds w4a16` |\n|---|---|---|\n")[1].split("\n\n")[0]
    shown = [[float(cell) for cell in line.split("|")[2:4]] for line in table.splitlines()]
    assert shown == [list(pair) for pair in zip(*(astuple(BOUNDS[name]) for name in ("fp8", "w4a16")), strict=True)]


def test_a_bound_leaves_room_for_the_spread_of_the_rounds():
    values = [float(value) for value in range(5)]  # 1.581 is their standard deviation, times 7.173 and 1.095
    assert quantised.most(values, 2) == 14.43 and quantised.least(values, 2) == -10.43
    with pytest.raises(ValueError, match="4 rounds; allowed: 5"):
        quantised.most(values[1:], 3)


class Handler(BaseHTTPRequestHandler):
    """A server with the OpenAI API that is not SGLang."""

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "model", "max_model_len": 4096, "object": "model"}], "object": "list"})

    def do_POST(self) -> None:
        self.answer({"meta_info": {}})

    def answer(self, body: dict) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *arguments: object) -> None:
        return


@pytest.fixture
def other_server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_servers_that_say_too_little_are_refused(other_server, trained_checkpoint, capsys):
    with pytest.raises(Unreachable, match="allowed: SGLang servers"):
        ask(other_server, [1, 2, 3])
    one = ["compare", "--base-url", other_server]
    two = [*one, "--base-url", other_server]
    model = ["--model", str(trained_checkpoint)]
    cases = {
        "--base-url: got 1 of them; allowed: two": one,
        "--model: got 1 of them; allowed: two": [*two, *model],
        "--lengths: 8192 tokens are not possible; allowed: below 4096": [*two, "--lengths", "1K,8K"],
        "gives no log-probabilities": [*two, "--lengths", "1K", "--items", "1", "--tokenizer", str(trained_checkpoint)],
        "does not name its tokenizer": [*two, "--lengths", "1K"],
    }
    for words, arguments in cases.items():
        assert cli.main(arguments) == 2
        assert words in capsys.readouterr().err


def test_the_plain_model_says_what_servers_are_asked_for(trained_checkpoint, tokenizer, monkeypatch):
    monkeypatch.setattr(layerwise, "HEAD_ROWS", 300)
    found = list(make_texts(tokenizer, (512, 600), 1, seed=0))
    by_layers = LayerwiseModel(CheckpointWeights(trained_checkpoint), "cpu", torch.float32)
    hidden, _ = run_both(by_layers, by_layers, [text.tokens for text in found]).hidden
    said = [say(by_layers, text, one) for text, one in zip(found, hidden, strict=True)]
    model = MiniCPMSALAForCausalLM.from_pretrained(trained_checkpoint, dtype=torch.float32).eval()
    for one, text in zip(said, found, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([text.tokens])).logits[0].log_softmax(-1)
        own = expected[:-1].gather(1, torch.tensor(text.tokens[1:])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(one.own), own, rtol=1e-4, atol=1e-4)
        assert [next(iter(place)) for place in one.likeliest] == expected[:-1].argmax(-1).tolist()
        assert {len(place) for place in one.likeliest} == {20}
    same = compare(said[0], said[0], found[0])
    assert same.divergence.kl.max() < 1e-9 and same.found[:, 0].equal(same.found[:, 1])
