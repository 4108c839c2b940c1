"""Floors beside those of the kernels' benchmark, which are counted row by row, and beside measured times."""

import csv
from pathlib import Path

import pytest

from benchmarks.operators.harness import floors
from benchmarks.operators.harness.sizes import RELEASED
from sala_sglang.cards import data, speed
from sala_sglang.config import SALAConfig

SIDE_BY_SIDE = Path(__file__).parents[2] / "benchmarks" / "results" / "serving" / "side_by_side.csv"
CONFIG = SALAConfig()
SPARSE_LAYERS, LIGHTNING_LAYERS = 8, 24


@pytest.mark.parametrize("tokens", [8192, 65_536])
def test_operations_of_a_prompt(tokens):
    counted = SPARSE_LAYERS * floors.select_blocks([(tokens, tokens)], RELEASED).operations
    counted += SPARSE_LAYERS * floors.sparse_attention(range(tokens), tokens, RELEASED).operations
    counted += LIGHTNING_LAYERS * floors.lightning_chunk([tokens], RELEASED).operations
    assert speed.attention_operations(CONFIG, tokens) == pytest.approx(counted, rel=0.02)
    assert speed.linear_operations(CONFIG, 1) == pytest.approx(17.75e9, rel=1e-3)


def test_bytes_of_a_step():
    found = speed.decode_bytes(CONFIG, 2**20, "bf16", "bf16")
    weights = 2 * (9_477_203_968 - 73_448 * 4096)
    assert found == weights + 2 * 48 * 2**20 + 96 * 64 * 8192 + 2**20 * 320
    assert speed.decode_bytes(CONFIG, 8191, "bf16", "bf16") == weights + 2 * 48 * 2**20 + 8191 * 8192, "dense"


def test_how_far_hopper_is_from_its_floors():
    with SIDE_BY_SIDE.open(newline="") as file:
        rows = {row["engine"]: row for row in csv.DictReader(file) if row["prompt_tokens"] == "131072"}
    card = data.find("H200")
    for engine, weights in (("plugin", "bf16"), ("plugin-fp8", "fp8")):
        assert card.reported in rows[engine]["gpu"]
        first = float(rows[engine]["ttft_s"]) / speed.first_token_s(CONFIG, card, 131_072, weights)
        each = float(rows[engine]["decode_ms_per_token"]) / speed.decode_ms(CONFIG, card, 131_072, weights)
        assert speed.HOPPER_RATIO["prefill", weights] == round(first, 1)
        assert speed.HOPPER_RATIO["decode", weights] == round(each, 1)


def test_what_no_data_sheet_says_is_not_known():
    card = data.find("RTX 6000D")
    assert (
        speed.first_token_s(CONFIG, card, 8192, "bf16") is None and speed.decode_ms(CONFIG, card, 8192, "bf16") is None
    )


def test_a_card_without_fp8_computes_in_bfloat16():
    card = data.find("A100 80 GB")
    assert speed.first_token_s(CONFIG, card, 8192, "fp8") == speed.first_token_s(CONFIG, card, 8192, "bf16")
