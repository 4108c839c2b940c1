"""Drafts of a second model: which ones can be served beside MiniCPM-SALA, and the hooks that make room for them.

The second model is a class of SGLang's own, a head that reads hidden states (EAGLE3) or a small dense model
(STANDALONE). It shares the table of token slots, and has keys and values of its own. Whatever it drafts, answers are
those of the served model; so what is refused here either ends in an error, or would draft nothing that holds.
"""

import importlib.util
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch

from sala_sglang.config import SALAConfig
from sala_sglang.models.captured import captured_layers

HEAD, DENSE = "EAGLE3", "STANDALONE"
ALGORITHMS = HEAD, DENSE
HEAD_ARCHITECTURE = "LlamaForCausalLMEagle3"
CPU_BACKEND, GPU_BACKENDS = "torch_native", ("fa3", "flashinfer", "triton")
GPU_DTYPES = "auto", "half", "float16", "bfloat16"  # "auto" is never float32
TOKENIZER_FILES = "tokenizer.json", "tokenizer.model", "vocab.json"
HOPPER = 9  # major compute capability
# (field, the values that work, what is missing for the others), with a draft model.
LIMITS = (
    ("enable_hierarchical_cache", (False,), "pages would come back from the host without keys and values of the draft"),
    ("json_model_override_args", ("{}",), "SGLang changes the draft model's configuration too"),
    ("enable_mixed_chunk", (False,), "mixed steps were not tried with a draft model"),
)


def device_limits(device: str) -> tuple[tuple[str, tuple, str], ...]:
    """(field, the values that work, what is missing for the others) that depend on where the draft model runs."""
    field, reason = "speculative_draft_attention_backend", "SGLang has no steps of draft models for it"
    if device == "cpu":
        return ((field, (None, CPU_BACKEND), reason),)
    sixteen_bits = "dtype", GPU_DTYPES, "SGLang's norm of draft models has no float32 on a GPU"
    return (field, (None, *GPU_BACKENDS), reason), sixteen_bits


def default_backend(device: str) -> str:
    """The backend of the draft model's attention where the user names none."""
    if device == "cpu":
        return CPU_BACKEND
    if torch.cuda.get_device_capability()[0] == HOPPER and importlib.util.find_spec("sgl_kernel.flash_ops"):
        return "fa3"
    return "flashinfer" if importlib.util.find_spec("flashinfer") else "triton"


def check(server_args: Any, model: Any) -> None:
    """Raise ValueError for a draft model that is missing, or does not fit ``model``, the served one's ModelConfig."""
    from sglang.srt.arg_groups.overrides import resolution_result
    from sglang.srt.configs.model_config import ModelConfig

    def found(field: str) -> Any:
        return resolution_result(server_args, field)

    algorithm = (found("speculative_algorithm") or "").upper()
    if algorithm not in ALGORITHMS:
        return
    check_arguments(algorithm, found)
    path, revision = found("speculative_draft_model_path"), found("speculative_draft_model_revision")
    draft = ModelConfig.from_server_args(server_args, model_path=path, model_revision=revision, is_draft_model=True)
    check_model(algorithm, draft, model)
    if algorithm == DENSE:
        check_tokenizers(found("tokenizer_path") or found("model_path"), path)


def check_arguments(algorithm: str, found: Callable[[str], Any]) -> None:
    """Raise ValueError where a draft model is missing, or the numbers of steps and rows do not go together."""
    if found("speculative_draft_model_path") is None:
        raise ValueError(
            f"MiniCPM-SALA: speculative_draft_model_path = None is not supported with {algorithm} (it is a second "
            "model that drafts); allowed: the directory or name of a checkpoint"
        )
    steps, rows = found("speculative_num_steps"), found("speculative_num_draft_tokens")
    if steps is not None and rows is not None and rows != steps + 1:
        raise ValueError(
            f"MiniCPM-SALA: speculative_num_draft_tokens = {rows} is not supported with speculative_num_steps = "
            f"{steps} (drafts are chains, and the rows of a request are its last token and a draft of every step); "
            f"allowed: {steps + 1}, or one of the two alone"
        )


def check_model(algorithm: str, draft: Any, target: Any) -> None:
    """Raise ValueError that names what of a draft model does not fit.

    draft, target: SGLang's ModelConfigs.
    """
    (architecture,) = draft.hf_config.architectures or ("none",)
    refusal = f"MiniCPM-SALA: speculative_draft_model_path = {draft.model_path!r} is not supported with {algorithm}"
    if (algorithm == HEAD) != (architecture == HEAD_ARCHITECTURE):
        allowed = HEAD_ARCHITECTURE if algorithm == HEAD else "a dense model that writes text on its own"
        raise ValueError(f"{refusal} (its architecture is {architecture}); allowed: {allowed}")
    if draft.vocab_size != target.vocab_size:
        raise ValueError(
            f"{refusal} (its vocab_size is {draft.vocab_size}); allowed: {target.vocab_size}, the served model's"
        )
    if algorithm == HEAD:
        _check_head(refusal, draft.hf_config, target.hf_config)
    elif what := _not_dense(draft):
        raise ValueError(f"{refusal} ({what}); allowed: a dense model that writes text, with attention in every layer")


def _check_head(refusal: str, head: Any, target: SALAConfig) -> None:
    hidden = target.hidden_size
    read = getattr(head, "target_hidden_size", head.hidden_size)
    if read != hidden:
        raise ValueError(f"{refusal} (it reads hidden states of {read} values); allowed: {hidden}, the served model's")
    if head.num_hidden_layers != 1:
        raise ValueError(f"{refusal} (num_hidden_layers is {head.num_hidden_layers}); allowed: 1")
    given = getattr(head, "eagle_config", None) or {}
    if not given.get("use_aux_hidden_state", True):
        raise ValueError(f"{refusal} (eagle_config says use_aux_hidden_state = false); allowed: true")
    layers = captured_layers(given.get("eagle_aux_hidden_state_layer_ids"), target.num_hidden_layers)
    inputs = getattr(head, "num_aux_hidden_states", None)
    if inputs is not None and inputs != len(layers):
        raise ValueError(f"{refusal} (num_aux_hidden_states is {inputs}); allowed: {len(layers)}, the layers it reads")


def _not_dense(draft: Any) -> str | None:
    """What keeps a model from drafting on its own, with the table of token slots and nothing else."""
    from sglang.srt.configs.hybrid_arch import mambaish_config
    from sglang.srt.configs.model_config import AttentionArch

    if isinstance(draft.hf_config, SALAConfig) or mambaish_config(draft) is not None:
        return "it has recurrent states, of which it would read the served model's"
    if draft.attention_arch != AttentionArch.MHA:
        return f"its attention is {draft.attention_arch.name}"
    if draft.is_hybrid_swa:
        return "its layers with windows have pages of their own"
    if not draft.is_generation or draft.is_multimodal:
        return "it is not a model of text alone that generates"
    return None


def check_message(message: Any) -> None:
    """Raise ValueError for a request whose prompt is no text: a draft model has an embedding of its own, or needs ids.

    message: SGLang's TokenizedGenerateReqInput.
    """
    for field in ("input_embeds", "positional_embed_overrides"):
        if getattr(message, field) is not None:
            raise ValueError(
                f"{field} is not supported with a draft model (SGLang gives it the embeddings, which are the served "
                "model's); allowed: none"
            )


def check_tokenizers(target_path: str, draft_path: str) -> None:
    """Raise ValueError where the draft model has a tokenizer in whose vocabulary a token has another id."""
    from transformers import AutoTokenizer
    from transformers.utils import cached_file

    def has_tokenizer(path: str) -> bool:  # a draft model need not have one, and it is never asked
        found = (cached_file(path, name, _raise_exceptions_for_missing_entries=False) for name in TOKENIZER_FILES)
        return any(found)

    if not (has_tokenizer(draft_path) and has_tokenizer(target_path)):
        return
    draft, target = (AutoTokenizer.from_pretrained(path).get_vocab() for path in (draft_path, target_path))
    if differing := sorted(token for token in target.keys() | draft.keys() if target.get(token) != draft.get(token)):
        token = differing[0]
        raise ValueError(
            f"MiniCPM-SALA: speculative_draft_model_path = {draft_path!r} is not supported with {DENSE} "
            f"({len(differing)} tokens have other ids, such as {token!r}: {draft.get(token)} in place of "
            f"{target.get(token)}); allowed: a model of the same vocabulary"
        )


def defaults(found: Callable[[str], Any], device: str, rows: int) -> dict[str, Any]:
    """Arguments of a server with a draft model that follow from others, or that the user left out.

    rows: of a request in a verify step, where the user says nothing of it.
    """
    steps, given = found("speculative_num_steps"), found("speculative_num_draft_tokens")
    rows = given or (rows if steps is None else steps + 1)
    backend = found("speculative_draft_attention_backend") or default_backend(device)
    return {
        "speculative_num_steps": rows - 1,
        "speculative_num_draft_tokens": rows,
        "speculative_eagle_topk": 1,
        "speculative_draft_attention_backend": backend,
    }


def follow_the_served_model(original: Callable, config: Any, context_length: int | None) -> None:
    """Give a draft model the served one's dtype, whose states a head reads, and let it go as far.

    SGLang takes the dtype of its checkpoint, float16 where that is float32. Behind the length that it was trained to
    its drafts are worse.
    """
    if not config.is_draft_model:
        _served.clear()
        _served[type(config.hf_config)] = config.dtype
    elif SALAConfig in _served:
        config.dtype = _served[SALAConfig]
        if context_length is not None:
            text = config.hf_text_config
            text.max_position_embeddings = max(context_length, getattr(text, "max_position_embeddings", 0))
    original(config, context_length)


_served: dict[type, torch.dtype] = {}  # class of the configuration of the model that this process serves, its dtype


def leave_memory_for_draft(result: None, configurator: Any, kvc: Any) -> None:
    """Count keys and values of a draft model by its own configuration; SGLang takes the served model's per layer."""
    from sglang.srt.mem_cache.draft_kv_budget import resolve_dflash_draft_cell_size

    draft = kvc.spec_aux_config.draft_model_config
    if kvc.is_draft_worker or draft is None or not isinstance(kvc.model_config.hf_config, SALAConfig):
        return
    layers = kvc.spec_aux_config.eagle_draft_num_layers
    of_draft = resolve_dflash_draft_cell_size(
        draft_model_config=draft, draft_num_layers=layers, attn_tp_size=kvc.draft_attn_tp_size
    )
    if of_draft is None:
        raise RuntimeError("sala-sglang would not serve: SGLang cannot tell the size of the draft model's KV")
    own = configurator._compute_cell_size(kvc, len(kvc.mambaish_config.full_attention_layer_ids))
    configurator._cell_size = own + of_draft


def load_whole(original: Callable, head: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Weights of an EAGLE3 head: SGLang ignores tensors that it does not know, and leaves missing ones as they were."""
    names: set[str] = set()

    def noted() -> Iterable[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            parts = (OLD_NAMES.get(part, part) for part in name.removeprefix("model.").split("."))
            names.add(".".join(parts))
            yield name, tensor

    original(head, noted())
    missing = [name for name in _parts(head) if name not in names]
    if missing and head not in _whole:  # a later update may be a part
        raise ValueError(f"MiniCPM-SALA: the draft model's checkpoint lacks {', '.join(sorted(missing))}")
    _whole.add(head)


# Of parts of a head's tensors, which SGLang reads as the new ones.
OLD_NAMES = {
    "midlayer": "layers.0",
    "aux_norm_low": "fc_norm.0",
    "aux_norm_mid": "fc_norm.1",
    "aux_norm_high": "fc_norm.2",
}
_whole: weakref.WeakSet = weakref.WeakSet()  # heads that have had all of their tensors


def _parts(head: Any) -> set[str]:
    """Tensors that a checkpoint of ``head`` must have, by their new names; the embedding is the target's."""
    merged = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    needed: set[str] = set()
    for name, _ in head.named_parameters():
        parts = [name]
        for whole, of in merged.items():
            if f".{whole}." in name:
                parts = [name.replace(whole, part) for part in of]
        needed.update(part.removeprefix("model.") for part in parts)
    if head.load_lm_head_from_target:
        needed.discard("lm_head.weight")
    elif head.lm_head.num_embeddings < head.config.vocab_size:
        needed.add("d2t")
    needed.discard("embed_tokens.weight")
    return needed


def served_model_alone(original: Callable, updater: Any, selector: str = "all") -> list[tuple[str, Any]]:
    """The models that new weights are for, where SGLang takes all: those of the served one.

    Some names are the same in both, and a head would silently go on with the served model's tensors. Whoever has new
    weights of the draft model names it.
    """
    return original(updater, "target" if selector == "all" else selector)


# SGLang's functions and what runs around them, in every process; then those of workers, around and after.
CONFIG_HOOKS: dict[str, Callable] = {
    "sglang.srt.configs.model_config.ModelConfig._derive_context_length": follow_the_served_model
}
_UPDATER = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"
HOOKS: dict[str, Callable] = {
    "sglang.srt.models.llama_eagle3.LlamaForCausalLMEagle3.load_weights": load_whole,
    f"{_UPDATER}._select_runners": served_model_alone,
}
POOL_HOOKS: dict[str, Callable] = {
    "sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator.__init__": leave_memory_for_draft
}
