"""The configuration: the released file as it is, other spellings, and a refusal for what cannot be served."""

import json

import pytest
from transformers import AutoConfig

import sala_sglang.hf  # noqa: F401  registers the configuration
from sala_sglang.config import LIGHTNING, SPARSE, SALAConfig, alibi_slopes

SPARSE_LAYERS = {0, 9, 16, 17, 22, 29, 30, 31}
RELEASED = {
    "architectures": ["MiniCPMSALAForCausalLM"],
    "model_type": "minicpm_sala",
    "vocab_size": 73448,
    "hidden_size": 4096,
    "intermediate_size": 16384,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-06,
    "max_position_embeddings": 524288,
    "rope_theta": 10000.0,
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 256,
    "attn_use_rope": False,
    "lightning_use_rope": True,
    "qk_norm": True,
    "use_output_gate": True,
    "use_output_norm": True,
    "attn_use_output_gate": True,
    "lightning_nh": 32,
    "lightning_nkv": 32,
    "lightning_head_dim": 128,
    "lightning_scale": "1/sqrt(d)",
    "mixer_types": ["minicpm4" if i in SPARSE_LAYERS else "lightning-attn" for i in range(32)],
    "sparse_config": {
        "kernel_size": 32,
        "kernel_stride": 16,
        "init_blocks": 1,
        "block_size": 64,
        "window_size": 2048,
        "topk": 64,
        "use_nope": False,
        "dense_len": 8192,
    },
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": [2, 73440],
    "pad_token_id": 2,
    "initializer_range": 0.1,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "pretraining_tp": 1,
    "mup_denominator": 32,
    "rope_scaling": None,
    "use_cache": True,
    "dtype": "bfloat16",
}


@pytest.fixture
def released_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(RELEASED))
    return tmp_path


def test_released_file_is_read_as_it_is(released_file):
    config = AutoConfig.from_pretrained(released_file)
    assert type(config) is SALAConfig
    read = config.to_dict()
    assert {name: read[name] for name in RELEASED} == RELEASED


def test_saved_and_loaded_again_it_is_the_same(released_file, tmp_path):
    config = AutoConfig.from_pretrained(released_file)
    config.save_pretrained(tmp_path / "again")
    again = AutoConfig.from_pretrained(tmp_path / "again")
    assert again.to_dict() | {"_name_or_path": config.name_or_path} == config.to_dict()
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written.items() >= RELEASED.items()


def test_released_geometry():
    config = SALAConfig(**RELEASED)
    assert config.layer_kinds == tuple(SPARSE if i in SPARSE_LAYERS else LIGHTNING for i in range(32))
    geometry = config.sparse_geometry
    assert (geometry.local_blocks, geometry.selected_blocks, geometry.dense_len) == (32, 96, 8192)
    assert config.lightning_geometry.scale == 128**-0.5
    assert config.residual_scale == pytest.approx(0.24748737341529164, rel=1e-15)
    assert config.logit_divisor == 16
    slopes = (-config.lightning_geometry.log_decay()).tolist()
    assert slopes == pytest.approx([2 ** (-(head + 1) / 4) for head in range(32)])


def test_defaults_are_the_released_architecture():
    default, released = SALAConfig().to_dict(), SALAConfig(**RELEASED).to_dict()
    differing = {name for name in released if default.get(name) != released[name]}
    assert differing <= {"architectures", "dtype", "eos_token_id", "pretraining_tp", "mup_denominator"}


def test_slopes_of_another_head_count():
    # Four heads, then every other slope of eight.
    assert alibi_slopes(6) == pytest.approx([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])


@pytest.mark.parametrize("spelling", ["lightning-attn", "lightning_attn", "lightning"])
def test_spellings_of_mixers(spelling):
    config = SALAConfig(num_hidden_layers=2, mixer_types=["minicpm4", spelling])
    assert config.layer_kinds == (SPARSE, LIGHTNING)
    assert config.mixer_types[1] == spelling


@pytest.mark.parametrize(("given", "scale"), [("1/sqrt(d)", 128**-0.5), ("1/d", 1 / 128), (0.5, 0.5), (1, 1.0)])
def test_spellings_of_the_lightning_scale(given, scale):
    assert SALAConfig(lightning_scale=given).lightning_geometry.scale == scale


# field, value, part of what the message says is allowed
IMPOSSIBLE = [
    ("hidden_act", "gelu", "silu"),
    ("attn_use_rope", True, "False"),
    ("attn_use_output_gate", False, "True"),
    ("lightning_use_rope", False, "True"),
    ("qk_norm", False, "True"),
    ("use_output_gate", False, "True"),
    ("use_output_norm", False, "True"),
    ("attention_bias", True, "False"),
    ("tie_word_embeddings", True, "False"),
    ("lightning_layerwise_decay", True, "False"),
    ("rope_scaling", {"rope_type": "linear", "factor": 2.0}, "None"),
    ("vocab_size", 0, "positive"),
    ("hidden_size", -1, "positive"),
    ("intermediate_size", 0, "positive"),
    ("num_hidden_layers", 0, "positive"),
    ("dim_model_base", 0, "positive"),
    ("num_attention_heads", 0, "positive"),
    ("num_key_value_heads", 3, "divisors of num_attention_heads = 32"),
    ("lightning_nh", 0, "positive"),
    ("lightning_nkv", 16, "lightning_nh = 32"),
    ("head_dim", 96, "16, 32, 64, 128 or 256"),
    ("lightning_head_dim", 7, "16, 32, 64, 128 or 256"),
    ("rms_norm_eps", 0.0, "positive"),
    ("lightning_scale", "sqrt(d)", "1/sqrt(d)"),
    ("lightning_scale", -1.0, "positive number"),
]


@pytest.mark.parametrize(("field", "value", "allowed"), IMPOSSIBLE)
def test_impossible_value_is_refused(field, value, allowed):
    assert_refused({field: value}, field, value, allowed)


IMPOSSIBLE_SPARSE = [
    ("colour", 1, "kernel_size"),
    ("use_nope", True, "False"),
    ("kernel_size", 0, "at least 1"),
    ("topk", 2.5, "integer"),
    ("dense_len", -1, "at least 0"),
    ("init_blocks", -1, "at least 0"),
    ("block_size", 48, "16, 32, 64, 128 or 256"),
    ("kernel_stride", 32, "divisors of block_size / 4 = 16"),
    ("kernel_size", 40, "multiples of kernel_stride = 16"),
    ("kernel_size", 128, "up to block_size = 64"),
    ("window_size", 100, "multiples of block_size = 64"),
    ("topk", 1, "more than init_blocks = 1"),
    ("topk", 1025, "at most 1024"),
]


@pytest.mark.parametrize(("field", "value", "allowed"), IMPOSSIBLE_SPARSE)
def test_impossible_sparse_value_is_refused(field, value, allowed):
    given = {"sparse_config": RELEASED["sparse_config"] | {field: value}}
    assert_refused(given, f"sparse_config.{field}", value, allowed)


IMPOSSIBLE_MIXERS = [
    (["minicpm4", "mamba"], "mixer_types[1]", "mamba", "lightning-attn"),
    (["lightning", "minicpm4"], "mixer_types[0]", "lightning", "minicpm4"),
    (["minicpm4", "minicpm4"], "mixer_types", ["minicpm4", "minicpm4"], "at least one"),
    (["minicpm4"], "mixer_types", "a list of 1", "2 hidden layers"),
]


@pytest.mark.parametrize(("names", "field", "value", "allowed"), IMPOSSIBLE_MIXERS)
def test_impossible_mixers_are_refused(names, field, value, allowed):
    assert_refused({"num_hidden_layers": 2, "mixer_types": names}, field, value, allowed)


def test_value_of_the_wrong_type_is_refused():
    with pytest.raises(Exception, match="hidden_size"):
        SALAConfig(hidden_size="wide")


def assert_refused(given, field, value, allowed):
    with pytest.raises(ValueError) as refusal:
        SALAConfig(**given)
    message = str(refusal.value)
    assert f"{field} = {value!r}" in message
    assert allowed in message.split("allowed:")[1]
