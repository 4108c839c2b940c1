"""The trained checkpoint in plain PyTorch: what dense attention finds, selected blocks find, and random ones do not."""

import json

import pytest
import torch
from safetensors import safe_open

from sala_sglang.checkpoint.parameter_shapes import tensor_shapes
from sala_sglang.hf import MiniCPMSALAForCausalLM
from training.architecture import make_config
from training.data import Encoder
from training.evaluate import measure

MAX_BYTES = 8 << 20


@pytest.fixture(scope="module", params=[2048, 4096])
def results(request, trained_checkpoint):
    model = MiniCPMSALAForCausalLM.from_pretrained(trained_checkpoint, dtype=torch.float32).eval()
    found = measure(model, Encoder(trained_checkpoint), request.param, conversations=2, seed=7)
    return {result.mode: result for result in found}


def test_what_is_found(results):
    assert results["dense"].answers > 40
    assert results["dense"].found >= 0.97
    # Four in five sentences of these texts may be facts that are not asked for: much more than in the evaluation.
    assert results["sparse"].found >= 0.8
    assert results["random"].found <= 0.4


def test_selected_blocks_keep_the_distribution(results):
    assert results["sparse"].kl < 0.2 * results["random"].kl


def test_the_checkpoint_is_of_the_released_format(trained_checkpoint):
    assert sum(path.stat().st_size for path in trained_checkpoint.iterdir()) <= MAX_BYTES
    shapes = tensor_shapes(make_config())
    with safe_open(trained_checkpoint / "model.safetensors", "pt") as file:
        assert {name: file.get_slice(name).get_shape() for name in file.keys()} == {  # noqa: SIM118  not a mapping
            name: list(shape) for name, shape in shapes.items()
        }
        assert {file.get_slice(name).get_dtype() for name in shapes} == {"BF16"}
    config = json.loads((trained_checkpoint / "config.json").read_text())
    assert config["model_type"] == "minicpm_sala" and config["sparse_config"]["dense_len"] == 1024
