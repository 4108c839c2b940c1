"""``sala-sglang plan``: what fits, what is proposed where it does not, and that proposals fit themselves."""

import pytest
from sala_kernels.targets import LIMITS

from sala_sglang import cli
from sala_sglang.cards import data, plan
from sala_sglang.cards.memory import MIB, Load, memory_bytes, state_bytes
from sala_sglang.config import SALAConfig

CONFIG = SALAConfig()


def run(capsys, *arguments: str) -> tuple[int, str]:
    code = cli.main(["plan", *arguments])
    return code, capsys.readouterr().out


@pytest.mark.parametrize("card", data.CARDS, ids=lambda card: card.name)
def test_cards(card):
    assert data.find(card.name) is data.find(f"NVIDIA {card.reported}") is card
    assert card.capability in LIMITS and 16_000 < card.memory_mib < 300_000 and card.source
    if card.bfloat16_tflops and card.fp8_tflops:
        assert card.fp8_tflops == pytest.approx(2 * card.bfloat16_tflops, rel=0.03)


def test_a_million_tokens_on_32_gb(capsys):
    code, said = run(capsys, "--gpu", "RTX 5090", "--context", "1M")
    assert code == 0 and "It fits." in said
    assert "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1 sglang serve" in said
    assert "--context-length 1048576" in said and "--max-total-tokens 1048704" in said
    assert "computed and not measured" in said and "--quantization" not in said


def test_what_does_not_fit_is_told_with_what_would(capsys):
    code, said = run(capsys, "--gpu", "RTX 4090", "--context", "1048576")
    assert code == 1 and "It does not fit. It would with" in said
    assert "weights in fp8, keys and values in bf16" in said and "a shorter context" in said
    assert "weights in fp8, keys and values in fp8" in said
    code, said = run(capsys, "--gpu", "RTX 4090", "--context", "128K", "--weights", "fp8", "--kv", "fp8")
    assert code == 0 and "--quantization fp8" in said and "--kv-cache-dtype fp8_e4m3" in said


@pytest.mark.parametrize("card", data.CARDS, ids=lambda card: card.name)
def test_fp8_keys_and_values_only_where_a_server_takes_them(card, capsys):
    """_cache_limit of the server's arguments has the same bound."""
    served = card.capability >= (8, 9)
    code = cli.main(["plan", "--gpu", card.name, "--context", "64K", "--kv", "fp8"])
    said = capsys.readouterr()
    assert (code == 2) == (not served) and ("--kv: 'fp8' is not served on" in said.err) == (not served)
    proposed = {change.load.cache for change in plan.changes(CONFIG, card, Load(2**26))}
    assert "fp8" not in proposed or served


@pytest.mark.parametrize("card", data.CARDS, ids=lambda card: card.name)
@pytest.mark.parametrize("load", [Load(2**21, 2, 8192), Load(2**17, 64, 4096), Load(2**15, 1000, 8192, "w4", "fp8")])
def test_proposals_fit(card, load):
    if plan.spare_bytes(CONFIG, card, load) >= 0:
        load = load._replace(context_tokens=2**26)
    for change in plan.changes(CONFIG, card, load):
        assert plan.spare_bytes(CONFIG, card, change.load) >= 0, change
        assert change.load != load
    longest = plan.longest_context(CONFIG, card, load)
    for context, fits in ((longest, True), (longest + plan.PAGE_TOKENS, False)):
        if context:
            assert (plan.spare_bytes(CONFIG, card, load._replace(context_tokens=context)) >= 0) == fits


@pytest.mark.parametrize("card", data.CARDS, ids=lambda card: card.name)
def test_flags_leave_room_for_what_no_pool_holds(card):
    load = Load(2**17, 1, plan.default_chunk_tokens(card.memory_mib), "fp8")
    parts = memory_bytes(CONFIG, load)
    fraction = plan.memory_fraction(CONFIG, card, load)
    pools = fraction * (card.memory_mib * MIB - plan.BEFORE_BYTES)
    kept = plan.states(CONFIG, card, load)
    assert kept >= load.states
    needed = parts["weights"] + parts["keys and values"] + parts["compressed keys"] + (kept + 1) * state_bytes(CONFIG)
    assert pools >= needed
    beside = sum(parts.values()) - needed + (kept - load.states) * state_bytes(CONFIG)
    assert pools + beside <= card.memory_mib * MIB


def test_fp8_weights_that_do_not_fit_before_they_are_quantised():
    small = data.find("RTX 5090")._replace(memory_mib=16_303)
    assert "use a checkpoint in FP8" in plan.notes(CONFIG, small, Load(2**17, weights="fp8"))[0]
    assert not plan.notes(CONFIG, data.find("RTX 5090"), Load(2**17, weights="fp8"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "Voodoo 2", "--context", "8K"], "'Voodoo 2' is no known card; allowed: RTX 3090, "),
        (["--gpu", "H100", "--context", "8k"], "'8k' is not possible; allowed: numbers like 65536, 128K or 1M"),
        (["--gpu", "H100", "--context", "0"], "'0' is not possible"),
        (["--gpu", "H100", "--context", "8K", "--weights", "fp4"], "invalid choice: 'fp4'"),
    ],
)
def test_impossible_arguments(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["plan", *arguments])
    assert message in capsys.readouterr().err
