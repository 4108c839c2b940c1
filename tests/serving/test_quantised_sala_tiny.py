"""sala-tiny in FP8 and in 4 bits: served as the weights that its files stand for, and judged by ``compare``.

Copies that are damaged in ways that a quantiser or a kernel may be, must not pass.
"""

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sala_sglang import cli
from testing.server import Server
from tests.conftest import TRAINED_ARGUMENTS
from tests.serving.client import all_at_once, complete, generate
from tests.serving.oracle import Oracle

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the bounds are those of dequantised weights")
CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
TOLERANCE = 1e-4  # as in test_quantised
DAMAGED_LAYER = "model.layers.5.mlp.down_proj.weight_scale"
LATE_ROTARY = "-m", "testing.late_rotary"


def double_scales(folder: Path) -> Path:
    """A copy of sala-tiny-w4a16 with the scales of one layer doubled."""
    shutil.copytree(CHECKPOINTS / "sala-tiny-w4a16", folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[DAMAGED_LAYER] = 2 * tensors[DAMAGED_LAYER]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@dataclass(frozen=True)
class Case:
    """checkpoint: its name. bounds: of ``compare``. broken: measures that must be, none of a good one."""

    checkpoint: str
    bounds: str
    broken: frozenset[str] = frozenset()
    program: tuple[str, ...] = ("-m", "sglang.launch_server")


CASES = {
    "w4a16": Case("sala-tiny-w4a16", "w4a16"),
    "scales doubled": Case("scales doubled", "w4a16", frozenset({"same first choice"})),
    # Nothing but the growth shows where the damage begins.
    "late rotary": Case("sala-tiny", "w4a16", frozenset({"growth of KL"}), LATE_ROTARY),
    "fp8": Case("sala-tiny-fp8", "fp8"),
}


@dataclass(frozen=True)
class Served:
    case: Case
    checkpoint: Path
    server: Server


@pytest.fixture(scope="module", params=CASES)
def served(request, tmp_path_factory):
    case = CASES[request.param]
    checkpoint = CHECKPOINTS / case.checkpoint
    if request.param == "scales doubled":
        checkpoint = double_scales(tmp_path_factory.mktemp("damaged") / "copy")
    with Server(checkpoint, *TRAINED_ARGUMENTS, program=case.program) as server:
        yield Served(case, checkpoint, server)


def weights_of(checkpoint: Path, model: torch.nn.Module) -> None:
    """Fill ``model`` with what the files stand for, by the definitions of compressed-tensors."""
    with safe_open(checkpoint / "model.safetensors", "pt") as file, torch.no_grad():
        names = set(file.keys())
        for name, parameter in model.named_parameters():
            layer = name.removesuffix(".weight")
            if f"{layer}.weight_packed" in names:
                packed, scales = (file.get_tensor(f"{layer}.weight_{one}") for one in ("packed", "scale"))
                codes = torch.stack([packed >> shift & 15 for shift in range(0, 32, 4)], dim=-1).flatten(1) - 8
                parameter.copy_((codes.unflatten(1, (scales.shape[1], -1)) * scales.float()[..., None]).flatten(1))
            elif f"{layer}.weight_scale" in names:
                parameter.copy_(file.get_tensor(name).float() * file.get_tensor(f"{layer}.weight_scale"))
            else:
                parameter.copy_(file.get_tensor(name))


def text(length: int, seed: int) -> list[int]:
    """Token ids of sentences that sala-tiny was trained on."""
    from transformers import AutoTokenizer

    from sala_sglang.quantization.comparison.command import make_texts

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "sala-tiny")
    return next(make_texts(tokenizer, (length,), 1, seed)).tokens


def test_answers_are_those_of_the_dequantised_weights(served):
    if served.case.broken:
        pytest.skip("damaged on purpose")
    oracle = Oracle(CHECKPOINTS / "sala-tiny")
    weights_of(served.checkpoint, oracle.model)
    for length in (600, 1500):  # dense, and with blocks selected
        prompt = text(length, seed=1)
        oracle.check(prompt, complete(served.server.client, prompt, 8), TOLERANCE)
    prompts = [text(length, seed=2) for length in (700, 1100)]
    for prompt, (answer, _) in zip(prompts, all_at_once(generate, served.server, prompts, 6), strict=True):
        oracle.check(prompt, answer, TOLERANCE)


def test_a_good_one_passes_and_a_damaged_one_does_not(served, trained_server, tmp_path):
    choice = ["--lengths", "1K,2K", "--items", "15", "--bounds", served.case.bounds, "--output", str(tmp_path / "csv")]
    servers = ["--base-url", trained_server.base_url, "--base-url", served.server.base_url]
    models = ["--model", str(CHECKPOINTS / "sala-tiny"), "--model", str(served.checkpoint)]
    code = cli.main(["compare", *servers, *choice, *models])
    rows = list(csv.DictReader((tmp_path / "csv").open()))
    broken = {row["measure"] for row in rows if row["within"] == "False"}
    assert code == (1 if served.case.broken else 0), broken
    assert served.case.broken <= broken and (served.case.broken or not broken), broken
    assert sum(row["measure"].startswith("same blocks in layer") for row in rows) == 3
    assert json.loads(served.server.get("/model_info"))["model_path"] == str(served.checkpoint)
