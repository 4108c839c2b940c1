"""Known GPUs: memory as the driver reports it; bandwidth and arithmetic from the data sheets of the manufacturer.

Arithmetic is dense, by tensor cores, with sums in float32. None stands for what is not known: nothing is guessed.
"""

from typing import NamedTuple


class Card(NamedTuple):
    """A GPU. ``reported`` is its name as the driver says it, without the manufacturer's."""

    name: str
    reported: str
    capability: tuple[int, int]
    memory_mib: int
    bandwidth_gb_per_s: int | None
    bfloat16_tflops: float | None
    fp8_tflops: float | None
    source: str


_AMPERE = "NVIDIA Ampere GA102 GPU Architecture, whitepaper V2.1"
_ADA = "NVIDIA Ada GPU Architecture, whitepaper V2.1"
_BLACKWELL = "NVIDIA RTX Blackwell GPU Architecture, whitepaper V1.1"
_PROFESSIONAL = "NVIDIA RTX PRO Blackwell GPU Architecture, whitepaper V1.0"

CARDS: tuple[Card, ...] = (
    Card("RTX 3090", "GeForce RTX 3090", (8, 6), 24_576, 936, 71, None, _AMPERE),
    Card("RTX A6000", "RTX A6000", (8, 6), 49_140, 768, 154.8, None, _AMPERE),
    Card("A10", "A10", (8, 6), 23_028, 600, 125, None, "NVIDIA A10 data sheet"),
    Card("A40", "A40", (8, 6), 46_068, 696, 149.7, None, "NVIDIA A40 data sheet"),
    Card("A100 40 GB", "A100-SXM4-40GB", (8, 0), 40_960, 1555, 312, None, "NVIDIA A100 data sheet"),
    Card("A100 80 GB", "A100-SXM4-80GB", (8, 0), 81_920, 2039, 312, None, "NVIDIA A100 data sheet"),
    Card("A100 80 GB PCIe", "A100 80GB PCIe", (8, 0), 81_920, 1935, 312, None, "NVIDIA A100 data sheet"),
    Card("L4", "L4", (8, 9), 23_034, 300, 121, 242.5, "NVIDIA L4 data sheet"),
    Card("RTX 4090", "GeForce RTX 4090", (8, 9), 24_564, 1008, 165.2, 330.3, _ADA),
    Card("L40S", "L40S", (8, 9), 46_068, 864, 362, 733, "NVIDIA L40S data sheet"),
    Card("RTX 6000 Ada", "RTX 6000 Ada Generation", (8, 9), 49_140, 960, 364.2, 728.5, _ADA),
    Card("H20", "H20", (9, 0), 97_871, 4000, 148, 296, "NVIDIA H20 data sheet"),
    Card("H100", "H100 80GB HBM3", (9, 0), 81_559, 3350, 989.4, 1978.9, "NVIDIA H100 data sheet"),
    Card("H100 PCIe", "H100 PCIe", (9, 0), 81_559, 2039, 756, 1513, "NVIDIA H100 data sheet"),
    Card("H100 NVL", "H100 NVL", (9, 0), 95_830, 3938, 835, 1671, "NVIDIA H100 data sheet"),
    Card("H200", "H200", (9, 0), 143_771, 4800, 989.4, 1978.9, "NVIDIA H200 data sheet"),
    Card("B200", "B200", (10, 0), 183_359, 8000, 2250, 4500, "NVIDIA DGX B200 data sheet"),
    Card("RTX 5090", "GeForce RTX 5090", (12, 0), 32_607, 1792, 209.5, 419, _BLACKWELL),
    Card("RTX 6000D", "RTX 6000D", (12, 0), 86_016, None, None, None, "no public data sheet; 84 GB as sold"),
    Card(
        "RTX PRO 6000",
        "RTX PRO 6000 Blackwell Workstation Edition",
        (12, 0),
        97_887,
        1792,
        503.8,
        1007.6,
        _PROFESSIONAL,
    ),
)


def find(name: str) -> Card:
    """The card of this name, ours or the driver's; upper case, spaces and the manufacturer's names do not matter.

    Raises ValueError, naming the cards, where none is called so.

    >>> find("rtx5090").memory_mib, find("NVIDIA H100 80GB HBM3").name
    (32607, 'H100')
    """
    for card in CARDS:
        if _plain(name) in (_plain(card.name), _plain(card.reported)):
            return card
    raise ValueError(f"{name!r} is no known card; allowed: {', '.join(card.name for card in CARDS)}")


def _plain(name: str) -> str:
    words = name.lower().replace("-", " ").split()
    return "".join(word for word in words if word not in ("nvidia", "geforce"))
