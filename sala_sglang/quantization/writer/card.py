"""The model card of a quantised checkpoint: what was done, and what it cost."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sala_sglang import __version__
from sala_sglang.config import SALAConfig
from sala_sglang.quantization import divergence
from sala_sglang.quantization.divergence import Summary
from sala_sglang.quantization.scheme import Scheme
from sala_sglang.quantization.weights import CheckpointWeights
from sala_sglang.quantization.writer.passes import HELD_OUT, Costs

GATES = "o_gate, z_proj"
COLUMNS = ("q_proj", "k_proj", "v_proj", GATES, "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Calibration:
    """Texts that a recipe went by. source: in words. tokens: of each. seconds: that all passes took."""

    source: str
    tokens: list[int]
    seconds: float
    device: str

    def selecting(self, config: SALAConfig) -> int:
        """How many of the texts are long enough for block selection."""
        return sum(count >= config.sparse_geometry.dense_len for count in self.tokens)


def make_card(
    weights: CheckpointWeights, recipe: str, schemes: dict[str, Scheme], calibration: Calibration | None, costs: Costs
) -> str:
    """README.md of the checkpoint that ``recipe`` made of ``weights``."""
    config = weights.config
    parts = [_front(weights.folder), _what(weights, recipe, schemes)]
    if calibration:
        parts.append(_how(config, calibration, bool(costs.outputs)))
    parts.append(_errors("Errors of the weights", "weight", costs.weights, config))
    if costs.outputs:
        parts.append(_errors("Errors of the outputs in calibration", "outputs", costs.outputs, config))
    parts.append(_predictions(costs))
    return "\n".join(parts)


def _front(source: Path) -> str:
    lines = ["---", "library_name: sala-sglang", f"base_model: {source.resolve().name}"]
    card = source / "README.md"
    if card.is_file() and (text := card.read_text()).startswith("---\n"):
        lines += [line for line in text.split("---\n")[1].splitlines() if line.startswith("license:")]
    return "\n".join([*lines, "---", ""])


def _what(weights: CheckpointWeights, recipe: str, schemes: dict[str, Scheme]) -> str:
    name = weights.folder.resolve().name
    rows: dict[str, dict[str, None]] = {}
    for linear, scheme in schemes.items():
        rows.setdefault(describe(scheme), {})[linear.split(".")[-1]] = None
    return "\n".join(
        [
            f"# {name}, quantised by the recipe {recipe}\n",
            f"Made of {name} by `sala-sglang quantize --recipe {recipe}` (sala-sglang {__version__}), in the format of",
            "compressed-tensors. It is served as any other checkpoint, `sglang serve --model-path DIR`.\n",
            "| weights | layers |",
            "|---|---|",
            *(f"| {described} | {', '.join(names)} |" for described, names in rows.items()),
            "| as they were | embedding, norms, head |\n",
        ]
    )


def describe(scheme: Scheme) -> str:
    """A scheme of a recipe in words."""
    if (group := getattr(scheme, "group", None)) is not None:
        return f"4-bit integers, a bfloat16 scale for {group} inputs"
    return {"channel": "FP8 (e4m3), a scale per output", "block": "FP8 (e4m3), a scale per block of 128 × 128"}[
        scheme.scales  # type: ignore[attr-defined]  # the other scheme of the recipes
    ]


def _how(config: SALAConfig, calibration: Calibration, calibrates: bool) -> str:
    kept = f"every {HELD_OUT}th was kept from calibration, to measure with"
    return "\n".join(
        [
            f"Texts: {calibration.source}; {len(calibration.tokens)}, with {sum(calibration.tokens):,} tokens in all.",
            f"{calibration.selecting(config)} of them are long enough for block selection (`dense_len` = "
            f"{config.sparse_geometry.dense_len:,});",
            f"{kept if calibrates else 'all of them were there to measure with'}. It took {calibration.seconds:,.0f} s "
            f"on {calibration.device}.\n",
        ]
    )


def _errors(title: str, of: str, errors: dict[str, float], config: SALAConfig) -> str:
    lines = [
        f"## {title}\n",
        f"Root mean square error of each layer's {of}, in percent of the root mean square of their values.\n",
        f"| layer | {' | '.join(COLUMNS)} |",
        f"|---{'|---' * len(COLUMNS)}|",
    ]
    for index in range(config.num_hidden_layers):
        cells = []
        for column in COLUMNS:
            found = [
                value
                for linear, value in errors.items()
                if linear.startswith(f"model.layers.{index}.") and linear.split(".")[-1] in column.split(", ")
            ]
            cells.append(f"{100 * found[0]:.2f}" if found else "")
        lines.append(f"| {index} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _predictions(costs: Costs) -> str:
    title = "## What it changes in predictions\n\n"
    if costs.predictions is None:
        return title + "Not measured here. `sala-sglang compare` measures it with two servers.\n"
    lines = [
        "By the plain model, before and after, with activations that are not quantised; products in FP8 on a GPU round",
        "these too. KL in nats, from the model before, over whole vocabularies.\n",
        "| positions | tokens | KL, mean | KL, 99.9 % | same first choice | perplexity | after / before |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_row(f"{begin:,} to {end - 1:,}", one) for begin, end, one in divergence.by_position(costs.predictions)]
    lines.append(_row("all", divergence.summary(costs.predictions)))
    return title + "\n".join([*lines, ""])


def _row(name: str, one: Summary) -> str:
    return (
        f"| {name} | {one.tokens:,} | {one.kl_mean:.5f} | {one.kl_tail:.4f} | {100 * one.same_choice:.2f} % "
        f"| {one.perplexity:.3f} | {one.perplexity_ratio:.4f} |"
    )


def lines(costs: Costs) -> Iterator[str]:
    """What is printed at the end."""
    for title, errors in (("weights", costs.weights), ("outputs", costs.outputs)):
        if errors:
            worst = max(errors, key=errors.__getitem__)
            mean = sum(errors.values()) / len(errors)
            yield f"error of {title}: {100 * mean:.2f} % on average, {100 * errors[worst]:.2f} % in {worst}"
    if costs.predictions is not None:
        found = divergence.summary(costs.predictions)
        yield (
            f"predictions: KL {found.kl_mean:.5f}, same first choice {100 * found.same_choice:.2f} %, perplexity "
            f"{found.perplexity_ratio:.4f} times that before"
        )
