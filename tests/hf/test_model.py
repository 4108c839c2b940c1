"""The plain PyTorch model: names and sizes, arithmetic against loops written by hand, caches, padding, gradients."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from sala_sglang.config import LIGHTNING, SPARSE, SALAConfig
from sala_sglang.hf import MiniCPMSALAForCausalLM, SALACache
from sala_sglang.hf.layers import rotary_tables
from tests.hf import by_hand

NEVER_SPARSE = 10**9
SIZES = {"kernel_size": 32, "kernel_stride": 16, "init_blocks": 1, "block_size": 64, "window_size": 64, "topk": 2}
ABOUT_EQUAL = {"rtol": 1e-4, "atol": 1e-4}  # float32 noise of logits of size 1


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint):
    return AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()


@pytest.fixture
def model(loaded):
    """The tiny model in float32; a test may change dense_len."""
    sizes = dict(loaded.config.sparse_config)
    with torch.no_grad():
        yield loaded
    loaded.config.sparse_config = sizes


def prompt(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 510, (1, tokens), generator=torch.Generator().manual_seed(seed))


def toy_config(**changes) -> SALAConfig:
    sizes = {
        "vocab_size": 40,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 16,
        "lightning_nh": 4,
        "lightning_nkv": 4,
        "lightning_head_dim": 16,
        "dim_model_base": 16,
        "mixer_types": [SPARSE, LIGHTNING],
        "initializer_range": 0.2,
        "sparse_config": SIZES | {"dense_len": 0},
    }
    return SALAConfig(**sizes | changes)


def test_released_names_and_shapes():
    with torch.device("meta"):
        released = MiniCPMSALAForCausalLM(SALAConfig())
    expected = {"model.embed_tokens": (73448, 4096), "model.norm": (4096,), "lm_head": (73448, 4096)}
    shared = {"input_layernorm": (4096,), "post_attention_layernorm": (4096,), "mlp.down_proj": (4096, 16384)}
    shared |= {"mlp.gate_proj": (16384, 4096), "mlp.up_proj": (16384, 4096)}
    square = (4096, 4096)
    lightning = {f"self_attn.{name}_proj": square for name in "qkvoz"}
    lightning |= {"self_attn.q_norm": (128,), "self_attn.k_norm": (128,), "self_attn.o_norm": (4096,)}
    sparse = {f"self_attn.{name}": square for name in ("q_proj", "o_proj", "o_gate")}
    sparse |= {"self_attn.k_proj": (256, 4096), "self_attn.v_proj": (256, 4096)}
    for layer in range(32):
        own = shared | (sparse if layer in (0, 9, 16, 17, 22, 29, 30, 31) else lightning)
        expected |= {f"model.layers.{layer}.{name}": shape for name, shape in own.items()}
    tensors = released.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        f"{name}.weight": shape for name, shape in expected.items()
    }
    assert len(tensors) == 395
    assert sum(tensor.numel() for tensor in tensors.values()) == 9_477_203_968


@pytest.mark.parametrize("dense_len", [0, NEVER_SPARSE])
def test_arithmetic_by_hand(dense_len):
    """Embedding and residual factors, both mixers and the divisor before the head, in float64."""
    config = toy_config(sparse_config=SIZES | {"dense_len": dense_len})
    torch.manual_seed(0)
    toy = MiniCPMSALAForCausalLM(config).double().eval()
    with torch.no_grad():
        for name, parameter in toy.named_parameters():
            if name.endswith("norm.weight"):
                parameter.normal_(1, 0.2)
        ids = torch.randint(0, 40, (1, 420))
        logits = toy(ids).logits[0]
    weights = {name: tensor.numpy() for name, tensor in toy.state_dict().items()}
    expected = by_hand.forward(weights, config, ids[0].tolist())
    # The rotary tables are float32 in every precision.
    np.testing.assert_allclose(logits.numpy(), expected, atol=1e-4 * expected.std())


@pytest.mark.parametrize("tokens", [1, 63, 65, 384])
def test_sparse_is_dense_while_every_block_is_selected(model, tokens):
    ids = prompt(tokens)
    model = copy.deepcopy(model).double()
    model.config.sparse_config["dense_len"] = NEVER_SPARSE
    dense = model(ids).logits
    model.config.sparse_config["dense_len"] = 0
    torch.testing.assert_close(model(ids).logits, dense, rtol=1e-9, atol=1e-9)


def test_dense_len_is_the_first_sparse_length(model):
    ids = prompt(512)
    at_default = [model(ids[:, :n]).logits for n in (511, 512)]
    model.config.sparse_config["dense_len"] = NEVER_SPARSE
    dense = model(ids).logits
    torch.testing.assert_close(at_default[0], dense[:, :511], **ABOUT_EQUAL)
    assert (at_default[1] - dense).abs().max() > 0.01


@pytest.mark.parametrize(
    ("parts", "dense_len"),
    [
        ((1, 62, 65, 1, 127, 444), 0),
        ((512, 188), 512),  # every call ends sparse
        ((100, 1, 399), 512),  # every call ends dense
        ((650, *[1] * 50), 512),
    ],
)
def test_calls_with_a_cache_equal_one_call(model, parts, dense_len):
    model.config.sparse_config["dense_len"] = dense_len
    ids, cache = prompt(sum(parts)), SALACache()
    pieces = [model(part, past_key_values=cache).logits for part in ids.split(parts, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), model(ids).logits, **ABOUT_EQUAL)
    assert cache.get_seq_length() == sum(parts)


@pytest.mark.parametrize("left", [True, False])
def test_padded_batch_equals_each_alone(model, left):
    """Prefill and two more calls; one sequence is sparse, one dense, one begins after an empty first call."""
    ids = [prompt(n, seed=n) for n in (700, 150, 20)]
    first, rest = [600, 100, 0], [100, 50, 20]
    cache, own = SALACache(), [SALACache() for _ in ids]
    begin = [0, 0, 0]
    for sizes in (first, rest):
        parts = [x[:, b : b + n] for x, b, n in zip(ids, begin, sizes, strict=True)]
        begin = [b + n for b, n in zip(begin, sizes, strict=True)]
        batch, mask = pad(parts, left)
        logits = model(batch, attention_mask=mask, past_key_values=cache).logits
        for row, part in enumerate(parts):
            if part.numel():
                alone = model(part, past_key_values=own[row]).logits[0]
                torch.testing.assert_close(logits[row, mask[row].bool()], alone, **ABOUT_EQUAL)


def pad(parts, left):
    width = max(part.shape[1] for part in parts)
    batch = torch.full((len(parts), width), 2)
    mask = torch.zeros(len(parts), width, dtype=torch.long)
    for row, part in enumerate(parts):
        at = slice(width - part.shape[1], width) if left else slice(0, part.shape[1])
        batch[row, at], mask[row, at] = part[0], 1
    return batch, mask


def test_greedy_generation(model):
    """A cache, chunks and a padded batch change nothing, and the logits of one call say the same tokens."""
    ids = prompt(40)
    greedy = model.generate(ids, max_new_tokens=16, do_sample=False)
    assert greedy[0, 40:].tolist() == model(greedy).logits[0, 39:-1].argmax(-1).tolist()
    for how in ({"use_cache": False}, {"prefill_chunk_size": 16}):
        assert model.generate(ids, max_new_tokens=16, do_sample=False, **how).tolist() == greedy.tolist()
    batch, mask = pad([ids, prompt(25, seed=1)], left=True)
    both = model.generate(batch, attention_mask=mask, max_new_tokens=16, do_sample=False)
    assert both[0, : greedy.shape[1]].tolist() == greedy[0].tolist()


def test_sampling(model):
    ids, draws = prompt(40), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(model.generate(ids, max_new_tokens=8, do_sample=True, temperature=0.9).tolist())
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("seed", [1, 2])  # beams of these change places
def test_beams_go_on_with_their_own_caches(model, seed):
    ids = prompt(40, seed=seed)
    beams, without_cache = (
        model.generate(ids, max_new_tokens=8, num_beams=3, do_sample=False, use_cache=cached)
        for cached in (True, False)
    )
    assert beams.tolist() == without_cache.tolist() and beams[0, :40].tolist() == ids[0].tolist()


def test_continuation_after_generate(model):
    """The cache of a finished answer serves the next turn."""
    cache, ids = SALACache(), prompt(30)
    answer = model.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False, past_key_values=cache)
    longer = torch.cat((answer, prompt(12, seed=3)), 1)
    second = model.generate(longer, max_new_tokens=8, do_sample=False, past_key_values=cache)
    assert second.tolist() == model.generate(longer, max_new_tokens=8, do_sample=False).tolist()


def test_loading_by_way_of_the_meta_device_keeps_the_rotary_tables(tiny_checkpoint, model):
    direct = MiniCPMSALAForCausalLM(copy.deepcopy(model.config)).eval()
    direct.load_state_dict(model.state_dict())
    ids = prompt(80)
    torch.testing.assert_close(direct(ids).logits, model(ids).logits, rtol=0, atol=0)
    base = AutoModel.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    torch.testing.assert_close(base(ids).last_hidden_state, model.model(ids).last_hidden_state, rtol=0, atol=0)


def test_rotary_tables_are_exact_far_out():
    cos, sin = rotary_tables(torch.tensor([0, 1, 262_143]), SALAConfig())
    angles = np.outer([0, 1, 262_143], 10000.0 ** (-np.arange(64) / 64))
    assert cos.dtype == torch.float32
    # A float32 angle near 262,143 is exact to 2^-6 at best; the slow dimensions are much better.
    np.testing.assert_allclose(cos[:2, 0].numpy(), np.cos(angles[:2]), atol=1e-6)
    np.testing.assert_allclose(sin[:, 0, -8:].numpy(), np.sin(angles[:, -8:]), atol=1e-3)


def test_bfloat16_is_close_to_float32(model):
    ids = prompt(300)
    exact = model(ids)
    rounded = copy.deepcopy(model).to(torch.bfloat16)(ids)
    assert rounded.logits.dtype == torch.float32
    assert rounded.past_key_values.sequences[0].states[1].dtype == torch.float32
    assert rounded.past_key_values.sequences[0].keys[0].dtype == torch.bfloat16
    # bfloat16 keeps 8 bits; a few dozen roundings in a row still leave an error of a few per cent.
    assert (rounded.logits - exact.logits).std() < 0.05 * exact.logits.std()


def test_logits_to_keep(model):
    ids = prompt(30)
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, model(ids).logits[:, -2:], **ABOUT_EQUAL)


def test_every_parameter_gets_a_finite_gradient():
    torch.manual_seed(0)
    toy = MiniCPMSALAForCausalLM(toy_config()).train()
    ids = torch.randint(0, 40, (2, 300))
    mask = torch.ones_like(ids)
    mask[1, :50] = 0
    loss = toy(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
    loss.backward()
    for name, parameter in toy.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_gradients_are_derivatives():
    torch.manual_seed(0)
    toy = MiniCPMSALAForCausalLM(toy_config()).double().train()
    ids = torch.randint(0, 40, (1, 260))

    def loss() -> torch.Tensor:  # the standard one is float32
        return torch.nn.functional.cross_entropy(toy(ids).logits[0, :-1], ids[0, 1:])

    loss().backward()
    step = 1e-6
    for name in ("model.layers.0.self_attn.k_proj.weight", "model.layers.1.self_attn.v_proj.weight"):
        parameter, losses = toy.get_parameter(name), []
        with torch.no_grad():
            for change in (step, -2 * step):
                parameter[0, 0] += change
                losses.append(loss().item())
        assert parameter.grad[0, 0].item() == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-3, abs=1e-8)


def test_inputs_that_do_not_fit_are_refused(model):
    ids = prompt(4)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(ids, inputs_embeds=torch.zeros(1, 4, 128))
    with pytest.raises(ValueError, match="attention_mask: expected shape"):
        model(ids, attention_mask=torch.ones(1, 3))
    with pytest.raises(ValueError, match="attention_mask: expected shape"):
        model(ids, attention_mask=torch.ones(1, 1, 4, 4))
    cache = model(ids).past_key_values
    with pytest.raises(ValueError, match="holds 1 sequences, the input 2"):
        model(ids.expand(2, -1), past_key_values=cache)
