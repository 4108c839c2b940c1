"""Checkpoints that ``sala-sglang quantize`` writes: what the loader reads of them, and that nothing half is left."""

import json
import math
import re
import weakref
from pathlib import Path

import pytest
import torch

from sala_sglang import cli
from sala_sglang.checkpoint.parameter_shapes import tensor_shapes
from sala_sglang.config import SALAConfig
from sala_sglang.hf import MiniCPMSALAForCausalLM
from sala_sglang.quantization import layerwise
from sala_sglang.quantization.checkpoint_files import Header, read_headers
from sala_sglang.quantization.comparison.bounds import BOUNDS
from sala_sglang.quantization.formats import Float8, PackedIntegers
from sala_sglang.quantization.layerwise import LayerwiseModel
from sala_sglang.quantization.plan import linears
from sala_sglang.quantization.weights import CheckpointWeights
from sala_sglang.quantization.writer.encode import encode_integers, integer_scales, round_to_codes
from sala_sglang.quantization.writer.hessian import InputMoments, output_error, round_by_inputs
from sala_sglang.quantization.writer.output import CheckpointWriter
from sala_sglang.quantization.writer.recipes import RECIPES, choose_schemes
from testing.quantised_checkpoints import SIZES

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
FP8, BLOCKS, INT4 = Float8("channel", False), Float8("block", False), PackedIntegers(4, 128)
# e4m3 has three bits behind the first one, so that values are at most 1/16 apart, and less on average.
LARGEST_ERROR = {FP8: 1 / 16, BLOCKS: 1 / 16, INT4: 0.3}


@pytest.fixture(scope="module")
def calibration(tmp_path_factory) -> Path:
    """Texts of a user: short ones, and one that is long enough for block selection."""
    words = "The code of the amber fox is 4711. A child waits for the train in the village. "
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    lines = [{"text": words * 12}, {"messages": [{"role": "user", "content": words * 14}]}, {"text": words * 36}]
    path.write_text("\n".join(map(json.dumps, [*lines, lines[0]])))
    return path


def quantise(source: Path, out: Path, recipe: str, *more: str) -> int:
    return cli.main(["quantize", "--model", str(source), "--out", str(out), "--recipe", recipe, *more])


@pytest.fixture(scope="module", params=RECIPES)
def written(request, source, calibration, tmp_path_factory):
    """A recipe and the checkpoint that it made."""
    out = tmp_path_factory.mktemp("written") / "out"
    more = ["--calibration", str(calibration)] if RECIPES[request.param].has_integers else []
    assert quantise(source, out, request.param, *more) == 0
    return request.param, out


def test_every_layer_is_what_the_recipe_says(written, source):
    recipe, out = written
    before, after = CheckpointWeights(source), CheckpointWeights(out)
    gates, others = {
        "fp8": (FP8, FP8), "fp8-block": (BLOCKS, BLOCKS), "w4a16": (INT4, INT4), "w4-fp8gates": (FP8, INT4),
    }[recipe]  # fmt: skip
    assert list(after.schemes) == linears(before.shapes)
    for linear, scheme in after.schemes.items():
        assert scheme == (gates if linear.endswith(("o_gate", "z_proj")) else others)
    for name in before.shapes:
        weight, served = before.weight(name).float(), after.weight(name).float()
        linear = name.removesuffix(".weight")
        error = ((served - weight).norm() / weight.norm()).item()
        assert 0 < error < LARGEST_ERROR[after.schemes[linear]] if linear in after.schemes else error == 0, name


def test_files_and_card(written, source):
    recipe, out = written
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, out))
    assert {name: value for name, value in after.items() if name != "quantization_config"} == before
    card = (out / "README.md").read_text()
    assert f"quantised by the recipe {recipe}" in card and "base_model: source" in card
    assert ("Errors of the outputs" in card) == RECIPES[recipe].has_integers
    assert ("| 512 to 1,023 |" in card or "| 0 to 1,023 |" in card) == RECIPES[recipe].has_integers


def test_the_plain_model_loads_what_is_written(written):
    """By transformers and compressed-tensors, which know the weights without a line of ours."""
    recipe, out = written
    model = MiniCPMSALAForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    tokens = torch.arange(3, 80)[None]
    with torch.no_grad():
        theirs = model(tokens).logits[0].log_softmax(-1)
    ours = whole(CheckpointWeights(out), tokens[0].tolist())
    if RECIPES[recipe].others is None and RECIPES[recipe].gates is None:
        assert torch.equal(theirs, ours)
    else:  # they round activations to FP8 too, as products on a GPU do
        assert 0 < (theirs.exp() * (theirs - ours)).sum(-1).mean() < 0.05


def whole(weights: CheckpointWeights, text: list[int]) -> torch.Tensor:
    model = LayerwiseModel(weights, "cpu", torch.float32)
    [hidden] = model.embed([text])
    for index in range(weights.config.num_hidden_layers):
        hidden = model.run(model.layer(index), hidden)
    return torch.cat([rows for (rows,) in model.log_probabilities(hidden)])


def test_layer_by_layer_is_the_whole_model(source, monkeypatch):
    monkeypatch.setattr(layerwise, "HEAD_ROWS", 500)
    model = MiniCPMSALAForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    tokens = torch.randint(3, 500, (1, 700), generator=torch.Generator().manual_seed(0))  # blocks are selected
    with torch.no_grad():
        expected = model(tokens).logits[0].log_softmax(-1)
    torch.testing.assert_close(whole(CheckpointWeights(source), tokens[0].tolist()), expected, rtol=1e-5, atol=1e-5)


def test_fp8_takes_one_weight_at_a_time(source, tmp_path, monkeypatch):
    read, alive = CheckpointWeights.stored, []

    def stored(self, name):
        alive[:] = [one for one in alive if one() is not None]
        assert len(alive) <= 1, name  # the one before may still have a name
        tensor = read(self, name)
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(CheckpointWeights, "stored", stored)
    monkeypatch.delattr(LayerwiseModel, "layer")
    assert quantise(source, tmp_path / "out", "fp8") == 0


def test_committed_fp8_is_what_the_command_writes(trained_checkpoint, tmp_path):
    assert quantise(trained_checkpoint, tmp_path / "out", "fp8") == 0
    committed, written = (CheckpointWeights(one) for one in (CHECKPOINTS / "sala-tiny-fp8", tmp_path / "out"))
    assert committed.headers == written.headers
    for name in committed.headers:
        assert torch.equal(committed.stored(name).float(), written.stored(name).float()), name


@pytest.mark.parametrize("name", ["sala-tiny-fp8", "sala-tiny-w4a16"])
def test_committed_checkpoints_are_small(name, trained_checkpoint):
    assert sum(path.stat().st_size for path in (CHECKPOINTS / name).iterdir()) < 4.2e6
    assert CheckpointWeights(CHECKPOINTS / name).config.sparse_geometry == (
        CheckpointWeights(trained_checkpoint).config.sparse_geometry
    )


def test_rounding_by_inputs_costs_less_than_rounding_to_nearest():
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(64, 256, generator=generator)
    inputs = torch.randn(4000, 64, generator=generator) @ mixed + 0.1 * torch.randn(4000, 256, generator=generator)
    weight, scheme = torch.randn(96, 256, generator=generator), PackedIntegers(4, 64)
    moments = InputMoments()
    for part in inputs.split(1500):
        moments.add(part[None])
    scales = integer_scales(weight, scheme, moments.mean.diagonal())
    rounded = round_by_inputs(weight, scales, scheme, moments.mean)
    nearest = round_to_codes(weight, scales.float().repeat_interleave(64, dim=1), scheme)
    expected = ((inputs @ (rounded - weight).T).norm() / (inputs @ weight.T).norm()).item()
    assert output_error(weight, rounded, moments.mean) == pytest.approx(expected, rel=1e-3)
    assert expected < 0.5 * output_error(weight, nearest, moments.mean)
    # What the loader makes of the files is what was chosen.
    encoded = encode_integers(rounded, scales, scheme)
    assert torch.equal(scheme.dequantize(encoded, [96]), rounded)


def test_inputs_that_are_never_there_and_weights_of_zero():
    scheme, moments = PackedIntegers(4, 32), torch.zeros(64, 64)
    moments[:8, :8] = torch.eye(8)
    weight = torch.zeros(16, 64)
    weight[:8, :32] = 1.0
    scales = integer_scales(weight, scheme, moments.diagonal())
    assert torch.equal(round_by_inputs(weight, scales, scheme, moments).sign(), weight)


REFUSED = [
    ("w4a16", {"hidden_size": 80}, "q_proj has 80 inputs, which no group of 4-bit integers divides; allowed: .* 32"),
    ("fp8-block", {"head_dim": 32}, "k_proj has 64 outputs and 256 inputs; allowed: multiples of 128 and 128"),
]


@pytest.mark.parametrize(("recipe", "sizes", "words"), REFUSED, ids=lambda value: str(value)[:20])
def test_shapes_that_do_not_fit_are_refused(recipe, sizes, words):
    with pytest.raises(ValueError, match=words):
        choose_schemes(recipe, tensor_shapes(SALAConfig(**SIZES | sizes)))


def test_a_smaller_group_where_128_does_not_fit():
    found = choose_schemes("w4-fp8gates", tensor_shapes(SALAConfig(**SIZES | {"hidden_size": 192})))
    assert set(found.values()) == {FP8, PackedIntegers(4, 64)}


def test_what_cannot_be_quantised_is_refused(written, source, calibration, tmp_path, capsys):
    _, out = written
    assert quantise(out, tmp_path / "out", "fp8") == 2
    assert "is quantised; allowed: weights of 16 bits or more" in capsys.readouterr().err
    for line, words in (("nothing", "line 1 is 'nothing'; allowed: an object"), ('{"text": "few"}', "no text of 256")):
        texts = tmp_path / "texts.jsonl"
        texts.write_text(line)
        assert quantise(source, tmp_path / "out", "w4a16", "--calibration", str(texts)) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_weight_that_is_not_finite_is_named_and_nothing_is_left(source, tmp_path, monkeypatch, capsys):
    name, read = "model.layers.2.mlp.up_proj.weight", CheckpointWeights.stored

    def stored(self, one):
        tensor = read(self, one)
        return tensor.fill_(torch.inf) if one == name else tensor

    monkeypatch.setattr(CheckpointWeights, "stored", stored)
    (tmp_path / "empty").mkdir()
    for out in ("new", "empty"):
        assert quantise(source, tmp_path / out, "fp8") == 2
        assert f"{name} has values that are not finite" in capsys.readouterr().err
    assert not (tmp_path / "new").exists() and not any((tmp_path / "empty").iterdir())


HEADERS = {name: Header(torch.bfloat16, (2, 3)) for name in ("first", "second", "third")}


def test_a_killed_process_leaves_nothing_that_looks_whole(source, tmp_path):
    writer = CheckpointWriter(tmp_path / "out", HEADERS).__enter__()  # and no end of the block
    for name in HEADERS:
        writer.add(name, torch.zeros(2, 3, dtype=torch.bfloat16))
    assert not (tmp_path / "out" / "config.json").exists()
    with pytest.raises(FileExistsError, match="allowed: a new or an empty directory"):
        CheckpointWriter(tmp_path / "out", HEADERS)
    writer.finish({}, "", source)
    assert (tmp_path / "out" / "config.json").read_text() == "{}\n"


def test_tensors_come_in_order_into_files_of_some_size(source, tmp_path):
    tensors = {name: torch.randn(2, 3).bfloat16() for name in HEADERS}
    with CheckpointWriter(tmp_path / "out", HEADERS, shard_bytes=25) as writer:
        with pytest.raises(ValueError, match=r"'second'.* where .*'first'.* is due"):
            writer.add("second", tensors["second"])
        with pytest.raises(ValueError, match="is due"):
            writer.add("first", torch.zeros(2, 3))
        for name, tensor in tensors.items():
            with pytest.raises(ValueError, match="tensors are missing"):
                writer.finish({}, "", source)
            writer.add(name, tensor)
        writer.finish({}, "", source)
    assert read_headers(tmp_path / "out") == HEADERS
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 36} and len(set(index["weight_map"].values())) == 2


def test_sizes_of_the_released_model_are_computed():
    """Those in the guide, of every recipe."""
    shapes = tensor_shapes(SALAConfig())
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "quantised_weights.md").read_text()
    rows = dict(re.findall(r"^\| `?([\w-]+)`? \| .* \| ([\d.]+) GB \|$", guide, re.MULTILINE))
    assert rows.keys() == {"none", *RECIPES}
    for recipe, shown in rows.items():
        schemes = choose_schemes(recipe, shapes) if recipe != "none" else {}
        size = 0
        for name, shape in shapes.items():
            linear = name.removesuffix(".weight")
            if linear not in schemes:
                size += 2 * math.prod(shape)
                continue
            for stored in schemes[linear].stored().values():
                width = (
                    2 if stored.scale and isinstance(schemes[linear], PackedIntegers) else stored.dtypes[-1].itemsize
                )
                size += width * math.prod(stored.shape(*shape))
        assert f"{size / 1e9:.1f}" == shown, recipe


def test_the_command_line_has_all_names():
    """It has them by itself, so that it stays quick."""
    assert tuple(RECIPES) == cli.RECIPES and tuple(BOUNDS) == cli.BOUNDS
