"""MiniCPM-SALA for transformers: the base model, and the causal language model that ``generate`` and Trainer use."""

from typing import Any, NoReturn

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from sala_sglang.config import SALAConfig
from sala_sglang.hf import arguments
from sala_sglang.hf.cache import SALACache, SequenceCache
from sala_sglang.hf.layers import MiniCPMSALADecoderLayer, MiniCPMSALARMSNorm, PackedStep


class MiniCPMSALAPreTrainedModel(PreTrainedModel):
    config_class = SALAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("MiniCPMSALADecoderLayer",)
    _skip_keys_device_placement = ("past_key_values",)
    _is_stateful = True  # no way back to fewer tokens, as assisted generation needs it

    def __init__(self, config: SALAConfig, *args: Any, **kwargs: Any):
        config.check()  # from_pretrained() sets the fields that it is given on a finished configuration
        super().__init__(config, *args, **kwargs)

    def _check_and_adjust_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> str:
        if attn_implementation not in (None, "eager"):
            arguments.refuse("attn_implementation", repr(attn_implementation), "None or 'eager', which are the same")
        return "eager"

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        self._check_and_adjust_attn_implementation(attn_implementation)


class MiniCPMSALAModel(MiniCPMSALAPreTrainedModel):
    def __init__(self, config: SALAConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MiniCPMSALADecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = MiniCPMSALARMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: SALACache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, T, hidden] after the last norm.

        input_ids: [B, T], or inputs_embeds [B, T, hidden]. attention_mask: [B, T], or with the columns of the cache
        before them; 1 marks real tokens. Padding is left out of everything and its hidden states are 0. Positions count
        the real tokens of a sequence; position_ids must say so too, or start again at 0 where another sample begins,
        which then sees nothing of the one before. output_hidden_states: also the inputs of all layers and the last
        hidden state. Raises ValueError on inputs that do not fit together and on values that cannot be followed,
        TypeError on unknown arguments.
        """
        arguments.check_inputs(input_ids, inputs_embeds, self.config.hidden_size)
        arguments.check_cache(past_key_values)
        embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        keep = arguments.real_tokens(attention_mask, embeds.shape[0], embeds.shape[1], past_key_values)
        keep = None if keep is None else keep.to(embeds.device)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if not isinstance(output_hidden_states, bool):
            arguments.refuse("output_hidden_states", output_hidden_states, "True, False or None")
        arguments.check_cache_position(cache_position, past_key_values, embeds.shape[1])
        step, cache = self._step(embeds, keep, position_ids, past_key_values, use_cache, kwargs)

        hidden = pack(embeds, keep) * self.config.scale_emb
        states = []
        for layer in self.layers:
            if output_hidden_states:
                states.append(spread(hidden, keep, embeds.shape))
                hidden = pack(states[-1], keep)  # so that gradients come by what the caller sees
            hidden = layer(hidden, step)
        last = spread(self.norm(hidden), keep, embeds.shape)
        if cache is not None and step.after is not None:
            cache.advance(step.after, embeds.shape[1])
        return BaseModelOutputWithPast(
            last_hidden_state=last,
            past_key_values=cache,
            hidden_states=(*states, last) if output_hidden_states else None,
        )

    def _step(
        self,
        embeds: torch.Tensor,
        keep: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        past_key_values: SALACache | None,
        use_cache: bool | None,
        others: dict[str, Any],
    ) -> tuple[PackedStep, SALACache | None]:
        """The step, and the cache that it extends if there is one; raises what ``forward`` says."""
        batch, columns = embeds.shape[:2]
        rows = [columns] * batch if keep is None else keep.sum(1).tolist()
        before = (SALACache() if past_key_values is None else past_key_values).of_batch(batch)
        starts = [sequence.tokens for sequence in before]
        lengths = arguments.sample_lengths(position_ids, keep, starts, rows)
        arguments.check_others(arguments.check_packing(lengths, others), self.config)
        packed = lengths != rows
        if packed:
            if use_cache or past_key_values is not None:
                arguments.refuse("position_ids", f"{len(lengths)} packed samples", "one sample per row with a cache")
            before = [SequenceCache() for _ in lengths]
            starts = [0] * len(lengths)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and not packed
        cache = SALACache() if use_cache and past_key_values is None else past_key_values
        if cache is not None and self.training and torch.is_grad_enabled() and self.is_gradient_checkpointing:
            # A reentrant checkpoint runs without gradients first: what it leaves in a cache has lost its own.
            arguments.refuse("use_cache", True, "None or False, without past_key_values, under gradient checkpointing")
        after = None if cache is None else [s.extended(n) for s, n in zip(before, rows, strict=True)]
        positions = arguments.count_positions(starts, lengths)
        return PackedStep(self.config, lengths, before, after, positions, self.config.sparse_geometry), cache


class MiniCPMSALAForCausalLM(MiniCPMSALAPreTrainedModel, GenerationMixin):
    accepts_loss_kwargs = True  # Trainer then leaves the division by the labels of all accumulated batches to us

    def __init__(self, config: SALAConfig):
        super().__init__(config)
        self.model = MiniCPMSALAModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: SALACache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, vocab] float32 (float64 of a float64 model), and with ``labels`` [B, T] the mean loss.

        Labels are the inputs, ``ignore_index`` where no loss is wanted; the shift by one happens here, and what follows
        padding or belongs to the next packed sample is not predicted. shift_labels [B, T] are already shifted, and are
        preferred. num_items_in_batch divides the sum, instead of the number of labels. logits_to_keep: only the last so
        many positions, or those given. The other arguments, and the errors, are those of the base model.
        """
        inputs = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache)
        # No parameter of its own: Trainer takes a batch for one without labels if it lacks any label that is one.
        shift_labels = kwargs.pop("shift_labels", None)
        given = input_ids if inputs_embeds is None else inputs_embeds
        arguments.check_loss(labels, shift_labels, given, logits_to_keep)
        outputs = self.model(*inputs, **kwargs, return_dict=True)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden = outputs.last_hidden_state[:, kept]
        logits = self.lm_head(hidden / self.config.logit_divisor)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = None
        if labels is not None and shift_labels is None:
            shift_labels = arguments.next_labels(labels, attention_mask, position_ids, ignore_index)
        if shift_labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
                ignore_index=ignore_index,
                shift_labels=shift_labels,
            )
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states
        )

    def _prepare_position_ids_for_generation(self, *args: Any, **kwargs: Any) -> None:
        return None  # the model counts real tokens itself, from what the cache holds

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        arguments.check_generation(generation_config, model_kwargs)
        # generate() would make a DynamicCache, which holds no recurrent state.
        if generation_config.use_cache is not False and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = SALACache()

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        next_sequence_length: int | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in transformers. Raises ValueError if the cache leaves no column of the inputs to compute."""
        if next_sequence_length is not None and next_sequence_length < 1:
            allowed = "the whole sequence with more than the cached columns, or new tokens with the mask of all"
            arguments.refuse("input_ids", f"{next_sequence_length} columns after those of past_key_values", allowed)
        kwargs.pop("tokenizer", None)  # of stop_strings; generate() hands it on to the model
        return super().prepare_inputs_for_generation(
            input_ids, next_sequence_length=next_sequence_length, inputs_embeds=inputs_embeds, **kwargs
        )

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises ValueError: its pages hold keys and values, no recurrent states. SGLang serves many requests."""
        raise ValueError("continuous batching (generate_batch, cache_implementation='paged') is not supported")


def pack(states: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """The real tokens [N, hidden] of [B, T, hidden]."""
    return states.flatten(0, 1) if keep is None else states[keep.to(states.device)]


def spread(hidden: torch.Tensor, keep: torch.Tensor | None, shape: torch.Size) -> torch.Tensor:
    """Hidden states [N, hidden] of the real tokens in their places [B, T, hidden], 0 elsewhere."""
    if keep is None:
        return hidden.view(shape)
    return hidden.new_zeros(shape).masked_scatter(keep.to(hidden.device)[..., None], hidden)
