"""Made checkpoints: the released format, reproducible, and weights under which mistakes show."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from sala_sglang.checkpoint import make
from sala_sglang.checkpoint.make import PRESETS, make_checkpoint, split_evenly
from sala_sglang.checkpoint.parameter_shapes import tensor_shapes
from sala_sglang.hf import MiniCPMSALAForCausalLM
from sala_sglang.hf import sparse as sparse_module


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return AutoTokenizer.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()


def read_weights(directory):
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_weights_have_the_names_shapes_and_dtype_of_the_model(tiny_checkpoint):
    shapes = tensor_shapes(PRESETS["tiny"].make_config())
    index = json.loads((tiny_checkpoint / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == shapes.keys()
    assert index["metadata"]["total_size"] == 2 * sum(map(math.prod, shapes.values()))
    for file in sorted(set(index["weight_map"].values())):
        with safe_open(tiny_checkpoint / file, "pt") as shard:
            assert shard.metadata() == {"format": "pt"}
            assert set(shard.keys()) == {name for name, home in index["weight_map"].items() if home == file}
            for name in shard.keys():  # noqa: SIM118  not a mapping
                assert shard.get_slice(name).get_shape() == list(shapes[name])
                assert shard.get_tensor(name).dtype == torch.bfloat16


@pytest.mark.parametrize("preset", PRESETS)
def test_shapes_are_those_of_the_model(preset):
    config = PRESETS[preset].make_config()
    with torch.device("meta"):
        model = MiniCPMSALAForCausalLM(config)
    assert tensor_shapes(config) == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_files_are_the_released_ones(tiny_checkpoint):
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    assert config["architectures"] == ["MiniCPMSALAForCausalLM"]
    assert (config["model_type"], config["dtype"]) == ("minicpm_sala", "bfloat16")
    assert "auto_map" not in config
    generation = GenerationConfig.from_pretrained(tiny_checkpoint)
    assert (generation.do_sample, generation.temperature) == (True, 0.9)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, [2, 510], 2)


def test_weights_are_spread_as_described(tiny_checkpoint):
    weights = read_weights(tiny_checkpoint)
    assert weights["lm_head.weight"].std().item() == pytest.approx(0.4, rel=0.02)
    matrix = weights["model.layers.1.self_attn.q_proj.weight"].float()
    assert matrix.std().item() == pytest.approx(0.4 / 2, rel=0.03)
    assert abs(matrix.mean().item()) < 0.01
    for name, weight in weights.items():
        if weight.ndim == 1:
            assert 0.02 < weight.float().std() < 0.2 and 0.8 < weight.float().mean() < 1.2, name


def test_seed_decides_the_weights(tiny_checkpoint, tmp_path):
    first = read_weights(tiny_checkpoint)
    for seed, same in ((0, True), (1, False)):
        make_checkpoint("tiny", tmp_path / str(seed), seed)
        second = read_weights(tmp_path / str(seed))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) is same for name in first)


def test_tensors_differ_from_each_other(tiny_checkpoint):
    weights = list(read_weights(tiny_checkpoint).values())
    pairs = [(one, other) for i, one in enumerate(weights) for other in weights[:i] if one.shape == other.shape]
    assert len(pairs) > 100 and not any(torch.equal(*pair) for pair in pairs)


def test_weights_are_written_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(make, "PIECE_ELEMENTS", 1000)
    shapes, config = {"a.weight": (70, 50), "b.weight": (999,), "c.weight": (1001,)}, PRESETS["tiny"].make_config()
    sizes = [piece.numel() for piece in make.random_pieces("a.weight", shapes["a.weight"], config, 0)]
    assert sizes == [1000, 1000, 1000, 500]
    make.write_shard(tmp_path / "shard.safetensors", shapes, config, seed=0)
    written = load_file(tmp_path / "shard.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in written.items()} == shapes
    assert all(tensor.float().std() > 0.05 for tensor in written.values())
    # Pieces of a tensor are not repetitions of one another.
    assert not torch.equal(written["a.weight"].flatten()[:1000], written["a.weight"].flatten()[1000:2000])


def test_full_preset_is_the_released_model():
    config = PRESETS["full"].make_config()
    shapes = tensor_shapes(config)
    assert len(shapes) == 395
    assert sum(map(math.prod, shapes.values())) == 9_477_203_968
    assert config.eos_token_id == [2, 73440]
    runs = split_evenly(shapes, PRESETS["full"].shards)
    assert [name for run in runs for name in run] == list(shapes)
    gigabytes = [2e-9 * sum(math.prod(shapes[name]) for name in run) for run in runs]
    assert len(gigabytes) == 4 and all(4 < size < 5.5 for size in gigabytes)


def test_full_preset_but_for_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(make, "write_weights", lambda *_: None)
    make_checkpoint("full", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.convert_tokens_to_ids(["<s>", "</s>", "<|im_end|>", "<|im_start|>"]) == [1, 2, 73440, 73441]
    assert tokenizer.decode(tokenizer("Hello, wörld").input_ids, skip_special_tokens=True) == "Hello, wörld"
    assert tokenizer.encode("a<|im_end|>", add_special_tokens=False)[-1] == 73440
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == [2, 73440]


def test_wrong_requests_are_refused(tiny_checkpoint, tmp_path):
    with pytest.raises(ValueError, match="'huge', allowed are 'tiny', 'full'"):
        make_checkpoint("huge", tmp_path)
    with pytest.raises(FileExistsError, match="not empty"):
        make_checkpoint("tiny", tiny_checkpoint)


@pytest.mark.parametrize("text", ["Hello, my name is", "  two  spaces\n\tand a tab", "naïve 你好 🙂", ""])
def test_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert ids[0] == 1 and 1 not in ids[1:]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_every_id_of_the_tiny_vocabulary_has_a_token(tokenizer):
    assert sorted(tokenizer.get_vocab().values()) == list(range(512))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)


def test_chat_template(tokenizer):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.apply_chat_template(chat, return_dict=False)
    assert (ids.count(511), ids.count(510), ids.count(1)) == (2, 2, 0)


def test_tokenizer_needs_no_code_of_ours(tiny_checkpoint, tokenizer):
    settings = json.loads((tiny_checkpoint / "tokenizer_config.json").read_text())
    assert "auto_map" not in settings
    assert type(tokenizer).__module__.startswith("transformers.")


PROMPTS = (
    "Hello, my name is",
    "The capital of France is",
    "Briefly explain gravity:",
    "1, 2, 3",
    "Where does the river go",
    "A planet draws objects",
)


@torch.no_grad()
def test_greedy_continuations_vary(tmp_path):
    # Not seed 0: with that, one of these prompts is answered with one token for ever, as random weights may do.
    make_checkpoint("tiny", tmp_path / "tiny", seed=1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tiny")
    for text in PROMPTS:
        inputs = tokenizer(text, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=40, min_new_tokens=40, do_sample=False)
        new = output[0, inputs.input_ids.shape[1] :]
        assert len(set(new.tolist())) > 10, text
        best = model(output).logits[0, -40:].topk(2).values
        # Most steps are far from a tie: bfloat16 noise is about 0.02.
        assert (best[:, 0] - best[:, 1]).median() > 0.1, text


@torch.no_grad()
def test_selection_matters(model, monkeypatch):
    ids = torch.randint(3, 510, (1, 1500), generator=torch.Generator().manual_seed(0))
    right = model(ids).logits[0]
    scores = sparse_module._block_scores
    monkeypatch.setattr(sparse_module, "_block_scores", lambda *args: -scores(*args))
    wrong = model(ids).logits[0]
    assert torch.equal(right[:384], wrong[:384])  # six blocks: no choice yet
    assert (right - wrong)[600:].std() > 0.1 * right.std()
    assert (right.argmax(-1) != wrong.argmax(-1))[600:].float().mean() > 0.1
