"""Tensors of every format go where they belong, on every number of ranks, and nothing else is taken."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sala_sglang.config import SALAConfig
from sala_sglang.models import loading
from sala_sglang.models.loading import WeightLoader
from sala_sglang.models.merged_projections import kv_copies, merged_runs
from sala_sglang.models.pipeline import Stage
from sala_sglang.quantization.checkpoint_files import read_headers
from sala_sglang.quantization.methods import DequantizedLinearMethod, PlannedConfig, gpu_method
from sala_sglang.quantization.plan import WEIGHT, QuantizationPlan, is_split_by_inputs
from testing.quantised_checkpoints import FORMATS, SIZES, Recipe, dequantised, quantise

CONFIG = SALAConfig(**SIZES)
WHOLE = Stage(0, CONFIG.num_hidden_layers, CONFIG.num_hidden_layers)
GROUP = 32
RECIPES = {
    **{format: Recipe(format, full=("o_gate",), group=GROUP) for format in FORMATS},
    "gptq in order": Recipe("gptq", group=GROUP, bits=8, fields={"desc_act": True}),
    "gptq version 2": Recipe("gptq", group=GROUP, fields={"checkpoint_format": "gptq_v2"}),
    "gptq of all inputs": Recipe("gptq", group=-1),
    "mixed": Recipe(
        "compressed int",
        full=("z_proj",),
        group=GROUP,
        mixed={"k_proj": "compressed fp8 channel", "v_proj": "compressed fp8 block", "up_proj": "compressed int8"},
    ),
}
Q, K = "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj"


@pytest.fixture(scope="module")
def checkpoint(source, tmp_path_factory):
    """A function from the name of a recipe to its plan and its tensors."""
    made: dict[str, tuple] = {}

    def make(name: str) -> tuple[QuantizationPlan, dict[str, torch.Tensor]]:
        if name not in made:
            folder = quantise(source, tmp_path_factory.mktemp("quantised") / "checkpoint", RECIPES[name])
            plan = QuantizationPlan(CONFIG, RECIPES[name].configuration(), read_headers(folder))
            tensors = {key: one for path in folder.glob("*.safetensors") for key, one in load_file(path).items()}
            made[name] = plan, tensors
        plan, tensors = made[name]
        return plan, dict(tensors)

    return make


class Model:
    """The quantised layers of the served model on one of ``ranks``, and of the others a parameter that takes all."""

    def __init__(self, plan, ranks=1):
        self.layers = {}
        self.plan, self.ranks = plan, ranks
        merged = set()
        for index, kind in enumerate(CONFIG.layer_kinds):
            layer = f"model.layers.{index}"
            runs = merged_runs(kind, lambda part, layer=layer: plan.schemes.get(f"{layer}.{part}"))
            for name, parts in runs.items():
                self.add(f"{layer}.{name}", tuple(f"{layer}.{part}" for part in parts))
                merged |= {f"{layer}.{part}" for part in parts}
        for name in plan.shapes:
            if name.removesuffix(WEIGHT) not in merged:
                self.add(name.removesuffix(WEIGHT), (name.removesuffix(WEIGHT),))

    def add(self, name, parts):
        module, scheme = nn.Module(), self.plan.schemes.get(parts[0])
        shapes = [self.plan.shapes[part + WEIGHT] for part in parts]
        if scheme is None:
            module.weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
            module.weight.weight_loader = lambda parameter, tensor, shard=None: None
        else:
            module.quant_method = DequantizedLinearMethod(scheme)
            module.quant_method.create_weights(module, **self.sizes(parts, shapes), params_dtype=torch.float32)
            for parameter in module.parameters():
                parameter.data = torch.full_like(parameter.float(), torch.nan).to(parameter.dtype)
        self.layers[name] = module, parts

    def sizes(self, parts, shapes):
        inputs, split = shapes[0][1], is_split_by_inputs(parts[0])
        outputs = [shape[0] * copies_of(part, self.ranks) for shape, part in zip(shapes, parts, strict=True)]
        return {
            "input_size_per_partition": inputs // self.ranks if split else inputs,
            "output_partition_sizes": outputs if split else [width // self.ranks for width in outputs],
            "input_size": inputs,
            "output_size": sum(outputs),
        }

    def named_parameters(self):
        return [
            (f"{name}.{suffix}", parameter)
            for name, (module, _) in self.layers.items()
            for suffix, parameter in module.named_parameters()
        ]


def copies_of(linear: str, ranks: int) -> int:
    kind = CONFIG.layer_kinds[int(linear.split(".")[2])]
    return kv_copies(CONFIG, kind, ranks) if linear.endswith(("k_proj", "v_proj")) else 1


@pytest.fixture
def on_rank(monkeypatch):
    def set_rank(rank: int, ranks: int) -> None:
        parallel = SimpleNamespace(attn_tp_size=ranks, attn_tp_rank=rank)
        monkeypatch.setattr(loading, "get_parallel", lambda: parallel)

    set_rank(0, 1)
    return set_rank


def part_of(weight: torch.Tensor, linear: str, rank: int, ranks: int) -> torch.Tensor:
    """The rows or columns of a weight that a rank multiplies by, cut from the whole."""
    if is_split_by_inputs(linear):
        return weight.chunk(ranks, dim=1)[rank]
    if (copies := copies_of(linear, ranks)) > 1:
        heads = weight.unflatten(0, (CONFIG.num_key_value_heads, CONFIG.head_dim))
        return heads[rank // copies]
    return weight.chunk(ranks)[rank]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("name", RECIPES)
def test_a_rank_has_its_part_of_every_weight(name, ranks, source, checkpoint, on_rank):
    plan, tensors = checkpoint(name)
    weights = dict(dequantised(source, RECIPES[name]))
    for rank in range(ranks):
        on_rank(rank, ranks)
        model = Model(plan, ranks)
        WeightLoader(CONFIG, plan, WHOLE).load(model, tensors.items())
        for module, parts in model.layers.values():
            if not hasattr(module, "quant_method"):
                continue
            module.quant_method.process_weights_after_loading(module)
            expected = torch.cat([part_of(weights[part + WEIGHT], part, rank, ranks) for part in parts])
            assert torch.equal(module.weight, expected), parts
            assert [key for key, _ in module.named_parameters()] == ["weight"]


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("name", RECIPES)
def test_sglang_has_the_same_parameters_for_a_gpu(name, ranks, checkpoint, monkeypatch):
    """Names, shapes and classes of dtype: what is shown here of placement holds there."""
    from sglang.srt.layers.quantization import marlin_utils

    monkeypatch.setattr(marlin_utils, "get_device_capability", lambda *device: (9, 0))
    plan, _ = checkpoint(name)
    model = Model(plan, ranks)
    for module, parts in model.layers.values():
        scheme = plan.schemes.get(parts[0])
        if scheme is None:
            continue
        layer = SimpleNamespace(scheme=None, tp_group=SimpleNamespace(world_size=ranks))
        layer.register_parameter = lambda key, value, layer=layer: setattr(layer, key, value)
        method = gpu_method(scheme, layer, PlannedConfig(plan))
        sizes = model.sizes(parts, [plan.shapes[part + WEIGHT] for part in parts])
        method.create_weights(layer, **sizes, params_dtype=torch.bfloat16, weight_loader=None)
        theirs = {key: value for key, value in vars(layer).items() if isinstance(value, nn.Parameter)}
        ours = dict(module.named_parameters())
        assert theirs.keys() == ours.keys()
        for key, value in theirs.items():
            assert value.shape == ours[key].shape, (parts, key)
            assert loading._dtype_class(value.dtype) == loading._dtype_class(ours[key].dtype), (parts, key)


def load(checkpoint, name, change):
    plan, tensors = checkpoint(name)
    WeightLoader(CONFIG, plan, WHOLE).load(Model(plan), change(tensors).items())


def changed(name: str, value):
    return lambda tensors: tensors | {name: value(tensors[name].clone())}


def set_first(value):
    def change(tensor):
        tensor.view(-1)[0] = value
        return tensor

    return change


DAMAGES = {
    "infinite scale": ("gptq", changed(f"{Q}.scales", set_first(torch.inf)), "not finite, or negative"),
    "negative scale": ("fp8 block", changed(f"{Q}.weight_scale_inv", set_first(-1.0)), "not finite, or negative"),
    "scale without a number": ("fp8 static", changed(f"{Q}.input_scale", set_first(torch.nan)), "not finite, or neg"),
    "asymmetric": ("gptq", changed(f"{Q}.qzeros", set_first(3)), "qzeros are not those of symmetric weights"),
    "order that is denied": ("gptq", changed(f"{Q}.g_idx", set_first(5)), "g_idx has an order of inputs"),
    "two orders": ("gptq in order", changed(f"{K}.g_idx", lambda order: order.roll(1)), "q_proj.g_idx: differs from"),
    "shape of weights": ("compressed int", changed(f"{Q}.weight_shape", set_first(5)), r"weight_shape is \[5, 256\]"),
    "dtype": ("int8", changed(f"{Q}.weight", lambda weight: weight.bfloat16()), "q_proj.weight is torch.bfloat16; all"),
    "shape": ("int8", changed(f"{Q}.weight", lambda weight: weight[:-1]), r"has shape \[511, 256\], expected"),
    "missing": ("awq", lambda found: {k: v for k, v in found.items() if k != f"{Q}.qzeros"}, "lacks 1 .*q_proj.qzeros"),
    "unknown": ("awq", lambda found: found | {f"{Q}.bias": found[f"{Q}.scales"]}, "an unknown tensor: .*q_proj.bias"),
    "16 bits": (
        "gptq",
        lambda found: {k: v for k, v in found.items() if not k.startswith(Q)} | {f"{Q}.weight": torch.zeros(512, 256)},
        "an unknown tensor: .*q_proj.weight",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tensors_are_refused_by_name(damage, checkpoint, on_rank):
    name, change, words = DAMAGES[damage]
    with pytest.raises(ValueError, match=words):
        load(checkpoint, name, change)


def test_a_tensor_that_comes_twice_is_refused(checkpoint, on_rank):
    plan, tensors = checkpoint("gptq")
    with pytest.raises(ValueError, match=f"the checkpoint has {Q}.scales twice"):
        WeightLoader(CONFIG, plan, WHOLE).load(Model(plan), [*tensors.items(), (f"{Q}.scales", tensors[f"{Q}.scales"])])


def test_an_order_that_files_leave_out_is_not_missed(checkpoint, on_rank):
    load(checkpoint, "gptq", lambda found: {k: v for k, v in found.items() if not k.endswith("g_idx")})


def test_a_parameter_of_another_geometry_is_named(checkpoint, on_rank):
    plan, tensors = checkpoint("gptq")
    model = Model(plan)
    model.layers["model.layers.0.self_attn.qkv_proj"][0].scales.data = torch.zeros(3, 2)
    with pytest.raises(RuntimeError, match=r"_proj.scales: "):
        WeightLoader(CONFIG, plan, WHOLE).load(model, tensors.items())
