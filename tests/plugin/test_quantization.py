"""Arguments of a server with a quantised checkpoint, from its configuration to the plan that SGLang gets."""

import json
import shutil
from pathlib import Path

import pytest

from sala_sglang.plugin import quantization
from testing.quantised_checkpoints import Recipe, make_source, quantise
from tests.plugin.processes import resolve

# Arguments beside the checkpoint, and words of the refusal.
REFUSED = {
    "--quantization awq": "quantization = 'awq' is not supported (the checkpoint is quantised by gptq); allowed: None, "
    "'gptq', 'gptq_marlin', 'marlin'",
    "--quantization fp8": "quantization = 'fp8' is not supported (the checkpoint is quantised by gptq)",
    "--load-format dummy": "load_format = 'dummy' is not supported",
    "--enable-lora --max-lora-rank 8 --lora-target-modules all": "enable_lora = True is not supported",
    "--tp-size 4": "self_attn.o_proj in GPTQ has 256 outputs and 64 inputs on each of 4 ranks; allowed: multiples of",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("quantised")
    narrow = make_source(root / "source", lightning_head_dim=64, head_dim=64)
    return quantise(narrow, root / "checkpoint", Recipe("gptq", full=("o_gate", "z_proj")))


@pytest.fixture(scope="module")
def damaged(checkpoint, tmp_path_factory) -> Path:
    """Excluded by the configuration, quantised in the files."""
    copy = tmp_path_factory.mktemp("damaged") / "checkpoint"
    shutil.copytree(checkpoint, copy)
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"]["dynamic"] |= {"-:.*k_proj": {}}
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.fixture(scope="module")
def results(checkpoint, damaged) -> dict[str, dict]:
    served = f"--model {checkpoint} --device cpu"
    given = ("", "--quantization gptq", "--tp-size 2", *REFUSED)
    commands = {arguments: f"{served} {arguments}" for arguments in given}
    commands["damaged"] = f"--model {damaged} --device cpu"
    return dict(zip(commands, resolve(list(commands.values())), strict=True))


@pytest.mark.parametrize("arguments", ["", "--quantization gptq", "--tp-size 2"])
def test_a_quantised_checkpoint_reaches_our_backend(results, arguments):
    assert results[arguments].get("attention_backend") == "sala", results[arguments]


@pytest.mark.parametrize("arguments", REFUSED)
def test_what_does_not_go_with_it_is_refused(results, arguments):
    assert REFUSED[arguments] in results[arguments].get("error", "no error")


def test_parts_of_merged_layers_cannot_be_left_out_of_online_quantization(monkeypatch):
    monkeypatch.setenv("SGLANG_FP8_IGNORED_LAYERS", "model.layers.0.self_attn.qkvg_proj, o_proj")
    quantization.check_online()
    monkeypatch.setenv("SGLANG_FP8_IGNORED_LAYERS", "o_proj, model.layers.0.self_attn.z_proj")
    with pytest.raises(ValueError, match=r"SGLANG_FP8_IGNORED_LAYERS = \['model.layers.0.self_attn.z_proj'\]"):
        quantization.check_online()


def test_a_checkpoint_at_odds_with_itself_is_refused(results):
    assert "leaves model.layers.0.self_attn.k_proj in 16 bits, and the files have" in results["damaged"]["error"]
