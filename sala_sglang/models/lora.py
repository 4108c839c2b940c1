"""What SGLang's LoRA asks of a model: the sizes of the layers that an adapter can change."""

from sglang.srt.runtime_context import get_parallel

from sala_sglang.config import SALAConfig
from sala_sglang.models.merged_projections import qkvg_widths

# By the names of this model's layers. An adapter speaks of the released ones: see plugin/lora.py.
STACKED = {"qkvg_proj": 4, "gate_up_proj": 2}
LINEAR_TARGETS = (*STACKED, "o_proj", "down_proj")


class LoRATargets:
    """Mixin of the model; the names of its methods are SGLang's."""

    config: SALAConfig
    start_layer: int
    end_layer: int

    def get_hidden_dim(self, module_name: str, layer_idx: int) -> tuple[int, int]:
        """Input and output features of a layer over all ranks together, none for layers of another pipeline stage.

        SGLang makes room for the adapters of that many. Raises ValueError for other names.
        """
        config, kind = self.config, self.config.layer_kinds[layer_idx]
        qkvg = qkvg_widths(config, kind, get_parallel().attn_tp_size)
        sizes = {
            "qkvg_proj": (config.hidden_size, sum(qkvg)),
            "o_proj": (qkvg[0], config.hidden_size),
            "gate_up_proj": (config.hidden_size, 2 * config.intermediate_size),
            "down_proj": (config.intermediate_size, config.hidden_size),
            "embed_tokens": (config.vocab_size, config.hidden_size),
            "lm_head": (config.hidden_size, config.vocab_size),
        }
        if module_name not in sizes:
            raise ValueError(f"MiniCPM-SALA: LoRA target {module_name!r} is not supported; allowed: {', '.join(sizes)}")
        if module_name in LINEAR_TARGETS and not self.start_layer <= layer_idx < self.end_layer:
            return 0, 0
        return sizes[module_name]

    def get_stacked_multiply(self, module_name: str) -> int:
        """How many released layers are stacked in ``module_name``."""
        return STACKED.get(module_name, 1)
