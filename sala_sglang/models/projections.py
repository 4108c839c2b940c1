"""The merged linear layers of a mixer or MLP: one, or one for each run of parts that are quantised alike."""

import torch
from sala_kernels.float8_rows import Float8Rows
from sglang.srt.layers.linear import MergedColumnParallelLinear
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.runtime_context import get_parallel
from sglang.srt.utils import add_prefix
from torch import nn

from sala_sglang.models.merged_projections import merged_parts, merged_runs
from sala_sglang.models.skinny_linear import as_input, takes_float8
from sala_sglang.quantization.methods import PlannedConfig
from sala_sglang.quantization.plan import QuantizationPlan


def plan_of(quant_config: QuantizationConfig | None) -> QuantizationPlan | None:
    """The schemes of a quantised checkpoint; None for one with 16 bits, also where SGLang quantises those itself."""
    return quant_config.plan if isinstance(quant_config, PlannedConfig) else None


class MergedProjections(nn.Module):
    """A module with projections that share its input."""

    def add_projections(
        self,
        kind: str,
        merged: str,
        features: int,
        widths: list[int],
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        """Add the layers that ``merged_runs`` names of the merged one.

        kind: of the decoder layer. features: inputs. widths: outputs of the parts over all ranks.
        """
        decoder_layer, room = prefix.rsplit(".", 1)
        parts = merged_parts(kind)[f"{room}.{merged}"]
        plan = plan_of(quant_config)
        runs = merged_runs(kind, lambda part: plan and plan.schemes.get(f"{decoder_layer}.{part}"))
        per_part, ranks = dict(zip(parts, widths, strict=True)), get_parallel().attn_tp_size
        self.runs = {name.removeprefix(f"{room}."): run for name, run in runs.items() if run[0] in parts}
        self.splits = [[per_part[part] // ranks for part in run] for run in self.runs.values()]
        for name, run in self.runs.items():
            layer = MergedColumnParallelLinear(
                features,
                [per_part[part] for part in run],
                bias=False,
                quant_config=quant_config,
                # A plan knows released names, SGLang's own configurations those of the model's layers.
                prefix=f"{decoder_layer}.{run[0]}" if plan else add_prefix(name, prefix),
            )
            self.add_module(name, layer)

    def takes_float8(self, rows: int) -> bool:
        """Whether ``multiply`` takes so many rows in FP8."""
        return takes_float8([getattr(self, name) for name in self.runs], rows)

    def multiply(self, x: torch.Tensor | Float8Rows, dtype: torch.dtype) -> list[torch.Tensor]:
        """Outputs of every layer for x [T, features], those of its parts side by side. dtype: theirs."""
        return [getattr(self, name)(as_input(x, dtype))[0] for name in self.runs]

    def project(self, x: torch.Tensor | Float8Rows, dtype: torch.dtype) -> list[torch.Tensor]:
        """Outputs of every part."""
        pairs = zip(self.multiply(x, dtype), self.splits, strict=True)
        return [part for product, widths in pairs for part in product.split(widths, dim=-1)]
