"""The plan of a quantised checkpoint: what is served, and that everything else is refused before a weight is read."""

import json
from pathlib import Path

import pytest
import torch

from sala_sglang.config import SALAConfig
from sala_sglang.quantization.checkpoint_files import Header, find_configuration, read_headers
from sala_sglang.quantization.configuration import CompressedTensorsRules, make_rules
from sala_sglang.quantization.formats import GPTQ, Float8, Int8, PackedIntegers
from sala_sglang.quantization.plan import QuantizationPlan, linears
from testing.quantised_checkpoints import FORMATS, LINEAR, SIZES, Recipe, quantise

CONFIG = SALAConfig(**SIZES)
SHORT = Recipe("gptq", group=64)
GATES = ("o_gate", "z_proj")
Q = "model.layers.1.self_attn.q_proj"
Z = "model.layers.1.self_attn.z_proj"


@pytest.fixture(scope="module")
def checkpoints(source, tmp_path_factory):
    """A function from recipes to the folders of their checkpoints."""
    made: dict[str, Path] = {}

    def make(recipe: Recipe) -> Path:
        key = repr(recipe)
        if key not in made:
            made[key] = quantise(source, tmp_path_factory.mktemp("quantised") / "checkpoint", recipe)
        return made[key]

    return make


@pytest.fixture(scope="module")
def headers(checkpoints):
    """A function from recipes to the headers of their files."""
    return lambda recipe: read_headers(checkpoints(recipe))


def plan(recipe: Recipe, headers: dict, **fields) -> QuantizationPlan:
    return QuantizationPlan(CONFIG, recipe.configuration() | fields, headers)


@pytest.mark.parametrize("format", FORMATS)
def test_every_linear_layer_has_its_scheme(format, headers):
    recipe = Recipe(format, full=("k_proj",), group=32)
    found = plan(recipe, headers(recipe))
    names = [name for name in linears(found.shapes) if not name.endswith("k_proj")]
    assert list(found.schemes) == names and len(set(found.schemes.values())) == 1


def test_a_file_says_what_gptq_leaves_open(headers):
    """Its older tools have lists of layers in their own code: the public checkpoint has gates of 16 bits."""
    found = plan(Recipe("gptq", group=64), headers(Recipe("gptq", full=GATES, group=64)))
    assert not any(name.endswith(GATES) for name in found.schemes) and Q in found.schemes


def test_dynamic_rules_are_by_released_names(headers):
    recipe = Recipe("gptq", full=GATES, group=64)
    more = {"+:.*never": {"bits": 8}, "-:.*self_attn\\.qkv_proj$": {}}
    found = plan(recipe, headers(recipe), dynamic=more | recipe.configuration()["dynamic"])
    assert set(found.schemes.values()) == {GPTQ(4, 64, False)} and Z not in found.schemes


def test_an_own_file_of_gptq_is_read(checkpoints, tmp_path):
    given = SHORT.configuration()
    given.pop("quant_method")
    (tmp_path / "quantize_config.json").write_text(json.dumps(given))
    assert find_configuration(tmp_path, CONFIG) == {"quant_method": "gptq", **given}
    assert find_configuration(tmp_path / "nowhere", CONFIG) is None


def test_groups_of_compressed_tensors():
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
    fp8 = Recipe("compressed fp8 channel").configuration()["config_groups"]["group_0"]
    given = {
        "config_groups": {
            "all": {"targets": ["Linear"], "weights": weights, "format": "pack-quantized"},
            "some": fp8 | {"targets": [r"re:.*\.(q|k)_proj$"], "format": "float-quantized"},
            "one": {
                **Recipe("compressed int8").configuration()["config_groups"]["group_0"],
                "targets": [Z],
                "format": "int-quantized",
            },
        },
        "ignore": ["lm_head", "re:.*mlp.*"],
    }
    rules = CompressedTensorsRules(given)
    assert rules.of(Q).scheme == Float8("channel", False)
    assert rules.of(Z).scheme == Int8()
    assert rules.of("model.layers.1.self_attn.o_proj").scheme == PackedIntegers(4, 128)
    assert rules.of("model.layers.1.mlp.up_proj").scheme is None


KV_SCHEME = {"type": "float", "num_bits": 8, "symmetric": True, "dynamic": False, "strategy": "attn_head"}
FIRST, LIGHTNING = "model.layers.0.self_attn", f"model.layers.{CONFIG.lightning_layer_ids[0]}.self_attn"


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        (f"{FIRST}.k_scale", (2, 1, 1), None),
        (f"{FIRST}.v_scale", (1,), None),
        (f"{FIRST}.v_scale", (64,), r"v_scale has shape \[64\]"),
        (f"{LIGHTNING}.v_scale", (1,), "1 unknown tensors"),
    ],
)
def test_scales_of_keys_and_values(headers, name, shape, words):
    recipe = Recipe("compressed fp8 channel")
    given = headers(recipe) | {name: Header(torch.float32, shape)}
    if words is None:
        assert name not in plan(recipe, given, kv_cache_scheme=KV_SCHEME).tensors()
        return
    with pytest.raises(ValueError, match=words):
        plan(recipe, given, kv_cache_scheme=KV_SCHEME)


# By a recipe: fields of the configuration and words of the refusal.
REFUSED_FIELDS = [
    (SHORT, {"quant_method": "modelopt"}, "quant_method = 'modelopt'.*'gptq'.*Blackwell"),
    (SHORT, {"quant_method": "bitsandbytes"}, "quant_method = 'bitsandbytes'.*'gptq', 'awq', 'fp8'"),
    (SHORT, {"quant_method": None}, "quant_method = None"),
    (SHORT, {"bits": 3}, r"bits = 3 is not supported; allowed: 4, 8"),
    (SHORT, {"bits": "4"}, r"bits = '4' is not supported"),
    (SHORT, {"sym": False}, "sym = False is not supported; allowed: True"),
    (SHORT, {"group_size": 16}, "group_size = 16 is not supported; allowed: -1, 32, 64, 128"),
    (SHORT, {"checkpoint_format": "marlin"}, "checkpoint_format = 'marlin'"),
    (SHORT, {"is_marlin_format": True}, "is_marlin_format = True"),
    (SHORT, {"lm_head": True}, "lm_head = True is not supported; allowed: False"),
    (SHORT, {"dynamic": {"+:.*q_proj": {"bits": 2}}}, r"dynamic\['\+:\.\*q_proj'\]\.bits = 2"),
    (Recipe("awq", group=64), {"zero_point": False}, "zero_point = False is not supported; allowed: True"),
    (Recipe("awq", group=64), {"version": "gemv"}, "version = 'gemv'"),
    (Recipe("awq", group=64), {"bits": 8}, "bits = 8 is not supported; allowed: 4"),
    (Recipe("fp8 tensor"), {"fmt": "e5m2"}, "fmt = 'e5m2'"),
    (Recipe("fp8 tensor"), {"scale_fmt": "ue8m0"}, "scale_fmt = 'ue8m0'"),
    (Recipe("fp8 block"), {"weight_block_size": [64, 64]}, r"weight_block_size = \[64, 64\].*\[128, 128\]"),
    (Recipe("fp8 block"), {"activation_scheme": "static"}, "activation_scheme = 'static'.*'dynamic'"),
    (Recipe("compressed int"), {"ignore": []}, "ignore = .*'lm_head'"),
    (Recipe("compressed int"), {"kv_cache_scheme": {"type": "int", "num_bits": 8}}, "kv_cache_scheme.type = 'int'"),
    (Recipe("compressed int"), {"kv_cache_scheme": KV_SCHEME | {"dynamic": True}}, "kv_cache_scheme.dynamic = True"),
    (Recipe("compressed int"), {"format": "nvfp4-pack-quantized"}, "format = 'nvfp4-pack-quantized'"),
    (Recipe("compressed int"), {"quantization_status": "calibration"}, "quantization_status = 'calibration'"),
]
# Changes of the one group of compressed-tensors.
REFUSED_GROUPS = [
    ("compressed int", ("weights", "symmetric"), False, "weights.symmetric = False"),
    ("compressed int", ("weights", "num_bits"), 2, "weights.num_bits = 2 is not supported; allowed: 4, 8"),
    ("compressed int", ("weights", "actorder"), "group", "weights.actorder = 'group'"),
    ("compressed int", ("weights", "group_size"), 48, "weights.group_size = 48"),
    ("compressed int", ("input_activations",), {"num_bits": 8}, "input_activations = .*allowed: None"),
    ("compressed fp8 channel", ("input_activations",), None, "input_activations = None.*activations in FP8"),
    ("compressed fp8 channel", ("input_activations", "dynamic"), False, "input_activations.dynamic = False"),
    ("compressed fp8 channel", ("weights", "strategy"), "group", "weights.strategy = 'group'"),
    ("compressed fp8 channel", ("output_activations",), {"num_bits": 8}, "output_activations"),
    ("compressed int8", ("weights", "strategy"), "tensor", "weights.strategy = 'tensor'"),
]


@pytest.mark.parametrize("recipe, fields, words", REFUSED_FIELDS, ids=lambda value: str(value)[:40])
def test_fields_that_cannot_be_served_are_refused(recipe, fields, words):
    with pytest.raises(ValueError, match=f"MiniCPM-SALA: quantization_config.{words}"):
        make_rules(recipe.configuration() | fields).of(Q)


@pytest.mark.parametrize("format, path, value, words", REFUSED_GROUPS, ids=lambda value: str(value)[:40])
def test_groups_that_cannot_be_served_are_refused(format, path, value, words):
    given = Recipe(format).configuration()
    *outer, last = path
    group = given["config_groups"]["group_0"] = json.loads(json.dumps(given["config_groups"]["group_0"]))
    (group[outer[0]] if outer else group)[last] = value
    with pytest.raises(ValueError, match=f"quantization_config.config_groups.group_0.{words}"):
        make_rules(given)


@pytest.mark.parametrize("field", ["config_groups"])
def test_fields_that_lack_are_named(field):
    given = Recipe("compressed int").configuration()
    del given[field]
    with pytest.raises(ValueError, match=f"{field} = None"):
        make_rules(given)


def test_a_layer_that_is_excluded_and_quantised_is_refused(headers):
    """FP8 codes would be cast into 16 bits, or a layer that should keep its precision be quantised."""
    for format in ("gptq", "awq", "fp8 tensor", "int8", "compressed fp8 channel"):
        with pytest.raises(ValueError, match=rf"leaves {Z} in 16 bits, and the files have {Z}.*allowed: the same"):
            plan(Recipe(format, full=("z_proj",), group=64), headers(Recipe(format, group=64)))


def test_a_layer_that_is_named_and_not_quantised_is_refused(headers):
    for format in ("fp8 tensor", "int8", "compressed fp8 channel"):
        with pytest.raises(ValueError, match=rf"makes {Z} .*, and the files have {Z}.weight \(torch.bfloat16\)"):
            plan(Recipe(format), headers(Recipe(format, full=("z_proj",))))


def test_quantised_in_name_alone(headers):
    """Weights of 16 bits under a configuration that would read them as something else."""
    unquantised = headers(Recipe("gptq", full=LINEAR))
    with pytest.raises(ValueError, match="no linear layer of the files is quantised"):
        plan(SHORT, unquantised)
    with pytest.raises(ValueError, match=r"quant_method makes model.layers.0.self_attn.q_proj int8, and the files"):
        plan(Recipe("int8"), unquantised)


DAMAGES = {
    "unknown": (lambda found: found | {f"{Q}.bias": Header(torch.float16, (512,))}, f"1 unknown tensors: {Q}.bias"),
    "missing": (lambda found: {k: v for k, v in found.items() if k != f"{Q}.scales"}, f"lacks 1 tensors: {Q}.scales"),
    "dtype": (
        lambda found: found | {f"{Q}.qweight": Header(torch.int16, found[f"{Q}.qweight"].shape)},
        f"{Q}.qweight is torch.int16; allowed: torch.int32",
    ),
    "shape": (
        lambda found: found | {f"{Q}.scales": Header(torch.float16, (4, 512, 1))},
        rf"{Q}.scales has shape \[4, 512, 1\], expected \[4, 512\]",
    ),
    "norm": (
        lambda found: found | {"model.norm.weight": Header(torch.int8, (256,))},
        "model.norm.weight is torch.int8; allowed: torch.float16",
    ),
    "head": (lambda found: found | {"lm_head.qweight": Header(torch.int32, (32, 512))}, "lm_head.qweight"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_that_lack_something_are_refused(headers, damage):
    change, words = DAMAGES[damage]
    with pytest.raises(ValueError, match=words):
        plan(SHORT, change(headers(SHORT)))


def test_order_of_inputs_may_be_left_out_where_there_is_none(headers):
    without = {name: header for name, header in headers(SHORT).items() if not name.endswith(".g_idx")}
    assert plan(SHORT, without).schemes
    with pytest.raises(ValueError, match=r"lacks \d+ tensors: .*g_idx"):
        plan(SHORT, without, desc_act=True)


def test_ranks_that_cut_through_groups_are_refused(headers):
    found = plan(Recipe("gptq"), headers(Recipe("gptq")))
    outputs = {name: found.shapes[f"{name}.weight"][0] for name in found.schemes}
    for ranks, on_gpu in ((1, True), (2, False), (4, False)):
        found.check_ranks(lambda name, ranks=ranks: max(outputs[name], 128 * ranks), ranks, on_gpu)
    with pytest.raises(ValueError, match=r"o_proj in GPTQ has 1024 outputs and 64 inputs on each of 8 ranks; .* 128"):
        found.check_ranks(lambda name: max(outputs[name], 1024), 8, False)
    with pytest.raises(ValueError, match=r"32 outputs and 256 inputs on each of 8 ranks; .* 64 and 128 .Marlin"):
        found.check_ranks(lambda name: 256, 8, True)


def test_headers_are_those_of_the_index(source, tmp_path):
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    found = read_headers(tmp_path)
    assert found["model.norm.weight"] == Header(torch.bfloat16, (256,))
    (tmp_path / "consolidated.safetensors").write_bytes(next(source.glob("*.safetensors")).read_bytes())
    assert read_headers(tmp_path) == found
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="twice"):
        read_headers(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_headers(tmp_path / "nowhere")
