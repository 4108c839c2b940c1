"""Loading as a model card says, beside remote code, and layers that are spread over devices."""

import json
import shutil

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import sala_sglang.hf
from sala_sglang.hf import MiniCPMSALAForCausalLM, SALACache


@pytest.fixture(scope="module")
def with_remote_code(trained_checkpoint, tmp_path_factory):
    """sala-tiny with files of its own that must not run."""
    out = tmp_path_factory.mktemp("remote") / "sala"
    shutil.copytree(trained_checkpoint, out)
    config = json.loads((out / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_minicpm_sala.MiniCPMSALAConfig",
        "AutoModel": "modeling_minicpm_sala.MiniCPMSALAModel",
        "AutoModelForCausalLM": "modeling_minicpm_sala.MiniCPMSALAForCausalLM",
    }
    (out / "config.json").write_text(json.dumps(config))
    for name in ("configuration", "modeling"):
        (out / f"{name}_minicpm_sala.py").write_text('raise RuntimeError("the remote code ran")\n')
    return out


def test_the_lines_of_a_model_card(with_remote_code):
    assert sala_sglang.hf
    path = str(with_remote_code)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, device_map="auto")
    prompts = ["Hello", "The code of the red fox is"]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
    outputs = model.generate(**inputs)
    assert type(model) is MiniCPMSALAForCausalLM
    texts = tokenizer.batch_decode(outputs, skip_special_tokens=True)
    assert all(text.startswith(prompt) and len(text) > len(prompt) for text, prompt in zip(texts, prompts, strict=True))
    alone = tokenizer(prompts[0], return_tensors="pt").to(model.device)
    assert texts[0] == tokenizer.decode(model.generate(**alone)[0], skip_special_tokens=True)


@pytest.mark.parametrize("how", [{}, {"device_map": "auto", "trust_remote_code": True}])
def test_pipeline(with_remote_code, how):
    generator = pipeline("text-generation", model=str(with_remote_code), dtype=torch.float32, **how)
    assert type(generator.model) is MiniCPMSALAForCausalLM
    prompts, greedy = ["Hello", "The code of the red fox is"], {"max_new_tokens": 8, "do_sample": False}
    together = [result[0]["generated_text"] for result in generator(prompts, batch_size=2, **greedy)]
    assert together == [generator(prompt, **greedy)[0]["generated_text"] for prompt in prompts]
    chat = generator([{"role": "user", "content": "Hello"}], **greedy)
    assert chat[0]["generated_text"][-1]["content"].startswith("Hello!")


def test_layers_on_disk(trained_checkpoint, tmp_path):
    """Every second layer comes from the disk when it is needed; the answer is that of the whole model."""
    places = {"model.embed_tokens": "cpu", "model.norm": "disk", "lm_head": "cpu"}
    places |= {f"model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(12)}
    options = {"dtype": torch.float32, "device_map": places, "offload_folder": str(tmp_path)}
    spread = AutoModelForCausalLM.from_pretrained(trained_checkpoint, **options)
    assert spread.model.layers[1].mlp.up_proj.weight.is_meta
    whole = AutoModelForCausalLM.from_pretrained(trained_checkpoint, dtype=torch.float32)
    ids = torch.randint(5, 1300, (2, 40), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(40) >= torch.tensor([[0], [15]])).long()
    both = [m.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False) for m in (spread, whole)]
    assert both[0].tolist() == both[1].tolist()
    with torch.no_grad():
        logits = [m(ids, attention_mask=mask).logits for m in (spread, whole)]
    torch.testing.assert_close(*logits, rtol=0, atol=0)


def test_layers_on_a_second_device(trained_checkpoint):
    """The second half on the meta device, where nothing is computed, but tensors of another device are refused."""
    model = AutoModelForCausalLM.from_pretrained(trained_checkpoint, dtype=torch.float32).eval()
    for part in (*model.model.layers[6:], model.model.norm, model.lm_head):
        part.to("meta")
        add_hook_to_module(part, AlignDevicesHook(execution_device="meta"))
    ids, cache = torch.arange(5, 25).view(2, 10), SALACache()
    mask = (torch.arange(10) >= torch.tensor([[0], [3]])).long()
    for step in range(3):
        output = model(
            ids[:, : 10 if step == 0 else 1], past_key_values=cache, attention_mask=mask if step == 0 else None
        )
    assert output.logits.is_meta and output.logits.shape == (2, 1, 1536)
    for sequence, tokens in zip(cache.sequences, (12, 9), strict=True):
        stored = sequence.keys | sequence.values | sequence.states
        assert {layer: tensor.is_meta for layer, tensor in stored.items()} == {i: i >= 6 for i in range(12)}
        assert len(sequence.keys[0]) == len(sequence.values[8]) == tokens
