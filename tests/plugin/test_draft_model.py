"""Draft models: which are refused, what follows from the arguments, their memory, and their steps on a CPU."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from sglang.srt.mem_cache import draft_kv_budget

from sala_sglang.config import SALAConfig
from sala_sglang.models.captured import captured_layers
from sala_sglang.plugin import cpu_drafts, draft_model, speculation
from testing.draft_models import make_dense, make_head
from tests.plugin.processes import resolve

HEAD, DENSE = "--speculative-algorithm EAGLE3", "--speculative-algorithm STANDALONE"
PATH = "--speculative-draft-model-path"
# Arguments, in which braces name a draft model; what is named, and what is allowed instead.
REFUSED = {
    HEAD: ("speculative_draft_model_path = None", "the directory or name of a checkpoint"),
    f"{DENSE} --speculative-num-steps 2": ("speculative_draft_model_path = None", "the directory or name"),
    f"{HEAD} {PATH} {{dense}}": ("its architecture is LlamaForCausalLM", "LlamaForCausalLMEagle3"),
    f"{DENSE} {PATH} {{head}}": ("its architecture is LlamaForCausalLMEagle3", "a dense model"),
    f"{DENSE} {PATH} {{target}}": (
        "it has recurrent states",
        "a dense model that writes text, with attention in every",
    ),
    f"{DENSE} {PATH} {{windows}}": ("its layers with windows have pages of their own", "a dense model"),
    f"{DENSE} {PATH} {{vocabulary}}": ("its vocab_size is 500", "512, the served model's"),
    f"{DENSE} {PATH} {{tokens}}": ("2 tokens have other ids", "a model of the same vocabulary"),
    f"{HEAD} {PATH} {{states}}": ("it reads hidden states of 64 values", "128, the served model's"),
    f"{HEAD} {PATH} {{last}}": ("eagle_aux_hidden_state_layer_ids = [0, 5]", "ascending layers from 0 to 4"),
    f"{HEAD} {PATH} {{head}} --speculative-num-steps 2 --speculative-num-draft-tokens 6": (
        "speculative_num_draft_tokens = 6",
        "3, or one of the two alone",
    ),
    f"{HEAD} {PATH} {{head}} --speculative-eagle-topk 2": ("speculative_eagle_topk = 2", "None, 1"),
    f"{HEAD} {PATH} {{head}} --speculative-num-steps 16": ("speculative_num_steps = 16", "None, 1, 2"),
    f"{HEAD} {PATH} {{head}} --speculative-accept-threshold-acc 0.9": ("speculative_accept_threshold_acc = 0.9", "1.0"),
    f"{HEAD} {PATH} {{head}} --speculative-adaptive": ("speculative_adaptive = True", "False"),
    f"{HEAD} {PATH} {{head}} --speculative-use-rejection-sampling": ("speculative_use_rejection_sampling", "False"),
    f"{HEAD} {PATH} {{head}} --enable-multi-layer-eagle": ("enable_multi_layer_eagle = True", "False"),
    f"{HEAD} {PATH} {{head}} --speculative-draft-attention-backend fa3": (
        "speculative_draft_attention_backend = 'fa3'",
        "None, 'torch_native'",
    ),
    f"{HEAD} {PATH} {{head}} --enable-hierarchical-cache": ("enable_hierarchical_cache = True", "False"),
    f"{HEAD} {PATH} {{head}} --enable-mixed-chunk": ("enable_mixed_chunk = True", "False"),
    f"{HEAD} {PATH} {{head}} --pp-size 2": ("pp_size = 2", "1"),
    f"{HEAD} {PATH} {{head}} --enable-return-hidden-states": ("enable_return_hidden_states = True", "False"),
    f"{HEAD} {PATH} {{head}} --json-model-override-args {{override}}": ("json_model_override_args", "'{}'"),
    f"--speculative-algorithm EAGLE {PATH} {{head}}": ("speculative_algorithm = 'EAGLE'", "None, 'NGRAM', 'EAGLE3'"),
}


@pytest.fixture(scope="module")
def models(tiny_checkpoint, tmp_path_factory) -> dict[str, str]:
    """Directories of draft models, by their names in REFUSED."""
    out = tmp_path_factory.mktemp("models")
    found = {
        "target": tiny_checkpoint,
        "head": make_head(tiny_checkpoint, out / "head", [0, 2, 4]),
        "last": make_head(tiny_checkpoint, out / "last", [0, 5]),
        "dense": make_dense(tiny_checkpoint, out / "dense"),
        "vocabulary": make_dense(tiny_checkpoint, out / "vocabulary", vocab_size=500),
        "tokens": make_dense(tiny_checkpoint, out / "tokens"),
        "windows": make_dense(tiny_checkpoint, out / "windows"),
        "states": make_head(tiny_checkpoint, out / "states", [0, 2, 4]),
    }
    change_config(found["states"], hidden_size=64)
    change_config(
        found["windows"],
        architectures=["MellumForCausalLM"],
        sliding_window=64,
        layer_types=["sliding_attention", "full_attention"],
    )
    swap_two_tokens(tiny_checkpoint, found["tokens"])
    return {name: str(path) for name, path in found.items()} | {"override": '{"rms_norm_eps":1e-5}'}


def change_config(path, **fields) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | fields))


def swap_two_tokens(source, target) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, target / name)
    table = json.loads((target / "tokenizer.json").read_text())
    vocabulary = table["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[100:102]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (target / "tokenizer.json").write_text(json.dumps(table))


@pytest.fixture(scope="module")
def refusals(tiny_checkpoint, models) -> dict[str, str]:
    commands = [f"--model {tiny_checkpoint} --device cpu {arguments.format(**models)}" for arguments in REFUSED]
    return {arguments: one.get("error", "no error") for arguments, one in zip(REFUSED, resolve(commands), strict=True)}


@pytest.mark.parametrize("arguments", REFUSED)
def test_what_cannot_be_served_is_refused(refusals, arguments):
    named, allowed = REFUSED[arguments]
    assert refusals[arguments].startswith("MiniCPM-SALA: ") and named in refusals[arguments]
    assert f"allowed: {allowed}" in refusals[arguments]


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({}, 3),
        ({"speculative_num_steps": 1}, 1),
        ({"speculative_num_draft_tokens": 8}, 7),
        ({"speculative_num_steps": 5, "speculative_num_draft_tokens": 6}, 5),
    ],
)
def test_steps_and_rows_go_together(given, steps):
    chosen = speculation.defaults(({"speculative_algorithm": "eagle3", "device": "cpu"} | given).get)
    assert chosen["speculative_num_steps"] == steps and chosen["speculative_num_draft_tokens"] == steps + 1
    assert chosen["speculative_eagle_topk"] == 1 and chosen["speculative_draft_attention_backend"] == "torch_native"


@pytest.mark.parametrize(
    ("capability", "installed", "expected"),
    [
        ((9, 0), ("sgl_kernel.flash_ops", "flashinfer"), "fa3"),
        ((9, 0), ("flashinfer",), "flashinfer"),
        ((8, 0), ("sgl_kernel.flash_ops", "flashinfer"), "flashinfer"),
        ((10, 0), ("sgl_kernel.flash_ops",), "triton"),
    ],
)
def test_attention_of_a_draft_model_by_gpu(monkeypatch, capability, installed, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(draft_model.importlib.util, "find_spec", lambda name: name if name in installed else None)
    assert draft_model.default_backend("cuda") == expected


def test_a_draft_model_on_a_gpu_has_sixteen_bits():
    """What SGLang's kernel of its norm has; on a CPU torch computes it."""
    values = {"speculative_algorithm": "EAGLE3", "device": "cuda"}
    limits = {field: allowed for field, allowed, _ in speculation.argument_limits(values.get)}
    assert "float32" not in limits["dtype"] and {"auto", "bfloat16", "float16"} <= set(limits["dtype"])
    assert "dtype" not in {field for field, *_ in speculation.argument_limits((values | {"device": "cpu"}).get)}


def test_layers_that_are_captured():
    """By the outputs that a head names; by default those of SGLang's other models."""
    assert captured_layers([1, 15, 28], 32) == (2, 16, 29)
    assert captured_layers(None, 32) == (2, 16, 29)
    assert captured_layers((30,), 32) == (31,)
    for outputs in ([31], [-1], [], [3, 2], [2, 2], ["1"]):
        with pytest.raises(
            ValueError, match=r"eagle_aux_hidden_state_layer_ids = .*; allowed: ascending layers from 0"
        ):
            captured_layers(outputs, 32)


def test_a_token_takes_the_draft_model_s_own_bytes(monkeypatch):
    """The released model has 8 KiB of keys and values in bfloat16 and their compressed keys; the head adds its own."""
    asked = {}
    monkeypatch.setattr(draft_kv_budget, "resolve_dflash_draft_cell_size", lambda **given: asked.update(given) or 16384)
    aux = SimpleNamespace(draft_model_config="a head", eagle_draft_num_layers=1)
    kvc = SimpleNamespace(
        is_draft_worker=False,
        spec_aux_config=aux,
        model_config=SimpleNamespace(hf_config=SALAConfig()),
        mambaish_config=SimpleNamespace(full_attention_layer_ids=list(range(8))),
        draft_attn_tp_size=2,
    )
    configurator = SimpleNamespace(_cell_size=9000, _compute_cell_size=lambda kvc, layers: 1024 * layers)
    draft_model.leave_memory_for_draft(None, configurator, kvc)
    assert configurator._cell_size == 8192 + 16384
    assert asked == {"draft_model_config": "a head", "draft_num_layers": 1, "attn_tp_size": 2}
    kvc.is_draft_worker = True
    draft_model.leave_memory_for_draft(None, configurator, kvc)
    assert configurator._cell_size == 8192 + 16384


def test_a_draft_model_follows_the_served_one():
    """To its context, only as far as it has to, and in its dtype; only beside this model."""
    reached, dtypes = [], []

    def reach(config: object, length: int | None) -> int:
        text = SimpleNamespace(max_position_embeddings=256)
        given = SimpleNamespace(is_draft_model=True, hf_config=None, hf_text_config=text, dtype=torch.float16)
        draft_model.follow_the_served_model(lambda *seen: reached.append(seen[1]), given, length)
        dtypes.append(given.dtype)
        return text.max_position_embeddings

    for served, expected in (SALAConfig(), 4096), (object(), 256):
        target = SimpleNamespace(is_draft_model=False, hf_config=served, dtype=torch.bfloat16)
        draft_model.follow_the_served_model(lambda *_: None, target, 4096)
        assert reach(target, 4096) == expected
        assert reach(target, 100) == 256 and reach(target, None) == 256
    assert reached == [4096, 100, None] * 2
    assert dtypes == [torch.bfloat16] * 3 + [torch.float16] * 3


class Head(torch.nn.Module):
    """The parameters that SGLang's class has, by their names."""

    load_lm_head_from_target = False

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        for name in ("fc", "embed_tokens", "layers.0.self_attn.qkv_proj", "layers.0.mlp.gate_up_proj", "norm"):
            self.add("model", *name.split("."), "weight")
        self.lm_head = torch.nn.Linear(1, 1, bias=False)
        self.lm_head.num_embeddings = vocabulary  # type: ignore[assignment]
        self.config = SimpleNamespace(vocab_size=10)

    def add(self, *path: str) -> None:
        module = self
        for name in path[:-1]:
            if not hasattr(module, name):
                module.add_module(name, torch.nn.Module())
            module = getattr(module, name)
        module.register_parameter(path[-1], torch.nn.Parameter(torch.zeros(1)))


def head_tensors(tmp_path, tiny_checkpoint) -> dict[str, torch.Tensor]:
    return load_file(make_head(tiny_checkpoint, tmp_path / "head", [0, 2, 4], 8) / "model.safetensors")


@pytest.mark.parametrize("missing", ["fc.weight", "midlayer.self_attn.k_proj.weight", "lm_head.weight", "d2t"])
def test_a_head_whose_checkpoint_lacks_a_tensor_is_refused(tmp_path, tiny_checkpoint, missing):
    tensors = head_tensors(tmp_path, tiny_checkpoint)
    seen = []
    draft_model.load_whole(lambda _, weights: seen.extend(name for name, _ in weights), Head(8), tensors.items())
    assert seen == list(tensors)
    del tensors[missing]
    lacks = missing.replace("midlayer", "layers.0")
    with pytest.raises(ValueError, match=f"the draft model's checkpoint lacks {lacks}"):
        draft_model.load_whole(lambda _, weights: list(weights), Head(8), tensors.items())
    if missing == "d2t":  # not needed where the head drafts every token
        draft_model.load_whole(lambda _, weights: list(weights), Head(10), tensors.items())


def test_a_head_that_is_whole_takes_parts(tmp_path, tiny_checkpoint):
    """As an update of weights that a request sends."""
    head, tensors = Head(8), head_tensors(tmp_path, tiny_checkpoint)
    draft_model.load_whole(lambda _, weights: list(weights), head, tensors.items())
    draft_model.load_whole(lambda _, weights: list(weights), head, [("norm.weight", tensors["norm.weight"])])


def test_new_weights_are_the_served_model_s_unless_the_draft_is_named():
    asked = [
        draft_model.served_model_alone(lambda _, selector: selector, None, *given)
        for given in ((), ("all",), ("draft",))
    ]
    assert asked == ["target", "target", "draft"]


def test_rows_and_steps_lie_behind_the_accepted_tokens():
    table = torch.arange(16, dtype=torch.int32).view(2, 8)
    rows, lengths = torch.tensor([1, 0]), torch.tensor([2, 5])
    slots = cpu_drafts.slots_of_rows(rows, table, lengths, lengths + 3, 2, 3, "cpu")
    assert slots.tolist() == [10, 11, 12, 5, 6, 7] and slots.dtype == torch.int64
    written = torch.zeros(4, dtype=torch.int64)
    cpu_drafts.slots_of_steps(rows, table, lengths, written, 1, 2)
    assert written.tolist() == [10, 11, 5, 6]


def test_links_of_chains():
    links = torch.full((3, 2, 3), -1)
    positions = torch.zeros(6, dtype=torch.int64)
    cpu_drafts.link_chains(None, None, torch.tensor([4, 9]), None, positions, *links, 1, 2, 3, None)
    assert positions.tolist() == [4, 5, 6, 9, 10, 11]
    assert links.tolist() == [[[0, 1, 2], [3, 4, 5]], [[1, 2, -1]] * 2, [[-1] * 3] * 2]


def test_last_accepted_token():
    written = torch.zeros(2, dtype=torch.int32)
    cpu_drafts.last_accepted(torch.tensor([5, 6, 7, 8, 9, 1]), torch.tensor([1, 3], dtype=torch.int32), written, 3, 2)
    assert written.tolist() == [5, 1]
