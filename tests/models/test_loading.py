"""A first load fills every parameter, each shard once, by tensors that it can hold; later ones may bring any part."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sala_sglang.checkpoint.make import TINY_CONFIG
from sala_sglang.config import SALAConfig
from sala_sglang.models import loading, minicpm_sala
from sala_sglang.models.loading import WeightLoader
from sala_sglang.models.merged_projections import merged_parts
from sala_sglang.models.pipeline import Stage

CONFIG = SALAConfig(**TINY_CONFIG)
WHOLE = Stage(0, CONFIG.num_hidden_layers, CONFIG.num_hidden_layers)
GATE_UP = "model.layers.0.mlp.gate_up_proj.weight"
GATE, UP = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"


class Merged(nn.Parameter):
    """A parameter of several released ones, one below the other."""

    def weight_loader(self, parameter, tensor, shard=None):
        rows = slice(None) if shard is None else slice(self.begins[shard], self.begins[shard] + len(tensor))
        parameter.data[rows].copy_(tensor)


class Model:
    """The parameters of the served model on one rank, NaN, and nothing else of it."""

    def __init__(self, dtype=torch.bfloat16, extra=(), wrapped=False):
        shapes = loading.tensor_shapes(CONFIG)
        self.parameters = {name: new(shape, torch.bfloat16) for name, shape in shapes.items()}
        for layer, kind in enumerate(CONFIG.layer_kinds):
            for merged, parts in merged_parts(kind).items():
                released = [self.parameters.pop(f"model.layers.{layer}.{part}.weight") for part in parts]
                heights = [len(one) for one in released]
                parameter = new((sum(heights), released[0].shape[1]), dtype)
                parameter.begins = [sum(heights[:i]) for i in range(len(heights))]
                name = f"{merged}.base_layer" if wrapped else merged
                self.parameters[f"model.layers.{layer}.{name}.weight"] = parameter
        self.parameters |= {name: new((1,), torch.float32) for name in extra}

    def named_parameters(self):
        return self.parameters.items()


def new(shape, dtype) -> Merged:
    values = torch.full(shape, torch.nan) if dtype.is_floating_point else torch.zeros(shape)
    return Merged(values.to(dtype), requires_grad=False)


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    monkeypatch.setattr(loading, "get_parallel", lambda: SimpleNamespace(attn_tp_size=1))


@pytest.fixture
def loader() -> WeightLoader:
    return WeightLoader(CONFIG, None, WHOLE)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = loading.tensor_shapes(CONFIG)
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "with LoRA"])
def test_every_parameter_is_filled(loader, weights, wrapped):
    model = Model(wrapped=wrapped)
    loader.load(model, weights.items())
    assert not any(parameter.isnan().any() for parameter in model.parameters.values())
    name = GATE_UP.replace(".weight", ".base_layer.weight") if wrapped else GATE_UP
    assert torch.equal(model.parameters[name], torch.cat([weights[GATE], weights[UP]]))


def test_wider_and_narrower_floats_are_cast(loader, weights):
    loader.load(Model(), [(name, tensor.float()) for name, tensor in weights.items()])


@pytest.mark.parametrize("held, given", [(torch.int8, torch.bfloat16), (torch.float8_e4m3fn, torch.bfloat16)])
def test_sixteen_bits_do_not_become_eight(loader, weights, held, given):
    with pytest.raises(ValueError, match=f"the checkpoint's model.* is {given}, and its parameter {held}"):
        loader.load(Model(dtype=held), weights.items())


@pytest.mark.parametrize("given", [torch.int8, torch.float8_e4m3fn])
def test_eight_bits_do_not_become_sixteen(loader, weights, given):
    weights[UP] = weights[UP].to(given)
    with pytest.raises(ValueError, match=f"the checkpoint's {UP} is {given}, and its parameter torch.bfloat16"):
        loader.load(Model(), weights.items())


def test_scales_that_no_tensor_fills_are_refused(loader, weights):
    scale = GATE_UP + "_scale"
    with pytest.raises(ValueError, match=f"no tensor of the checkpoint fills 1 parameters: {scale}"):
        loader.load(Model(extra=[scale]), weights.items())


def test_a_tensor_that_comes_twice_is_refused(loader, weights):
    with pytest.raises(ValueError, match=f"the checkpoint has {UP} twice"):
        loader.load(Model(), [*weights.items(), (UP, weights[UP])])


def test_a_first_load_must_be_whole_and_later_ones_need_not(loader, weights):
    model, up = Model(), {UP: weights.pop(UP)}
    with pytest.raises(ValueError, match=f"the checkpoint lacks 1 tensors: {UP}"):
        loader.load(model, weights.items())
    loader.load(model, (weights | up).items())
    loader.load(model, up.items())


def test_parts_may_follow_parameters_that_sglang_filled_itself(loader, weights):
    """--load-format dummy, and then the weights of a trainer in buckets."""
    minicpm_sala.MiniCPMSALAForCausalLM.post_load_weights(SimpleNamespace(weight_loader=loader))
    model = Model()
    loader.load(model, [(UP, weights[UP])])
    assert torch.equal(model.parameters[GATE_UP][-len(weights[UP]) :], weights[UP])


@pytest.mark.parametrize("stage", [Stage(0, 2, 6), Stage(2, 5, 6), Stage(5, 6, 6)], ids=["first", "middle", "last"])
def test_a_pipeline_stage_takes_its_own_tensors(weights, stage):
    model = Model()
    model.parameters = {name: one for name, one in model.parameters.items() if stage.has_tensor(name)}
    own = next(name for name in reversed(weights) if stage.has_tensor(name))
    others = next(name for name in weights if not stage.has_tensor(name))
    del weights[others]
    with pytest.raises(ValueError, match=f"the checkpoint lacks 1 tensors: {own}"):
        WeightLoader(CONFIG, None, stage).load(model, [(name, one) for name, one in weights.items() if name != own])
    WeightLoader(CONFIG, None, stage).load(model, weights.items())
    assert not any(parameter.isnan().any() for parameter in model.parameters.values())


def test_a_pipeline_stage_refuses_what_no_stage_has(weights):
    stage = Stage(0, 2, 6)
    with pytest.raises(ValueError, match=r"unknown tensor: model.layers.6.mlp"):
        WeightLoader(CONFIG, None, stage).load(Model(), [("model.layers.6.mlp.up_proj.weight", weights[UP])])
