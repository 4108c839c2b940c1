"""What the configuration of a quantised checkpoint says of every linear layer."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from sala_sglang.quantization.formats import AWQ, FP8_BLOCK, GPTQ, Float8, Int8, PackedIntegers
from sala_sglang.quantization.scheme import Scheme

GROUPS = (32, 64, 128)
HEAD = "lm_head"
# Methods of published checkpoints that are not loaded, and why.
UNSUPPORTED = {
    "modelopt": "NVFP4 and FP8 of ModelOpt are not loaded; SGLang has products of NVFP4 on Blackwell alone",
    "modelopt_fp4": "NVFP4 is not loaded; SGLang has products of it on Blackwell alone",
    "modelopt_fp8": "FP8 of ModelOpt is not loaded",
    "mxfp4": "SGLang has it for experts",
    "mxfp8": "SGLang has it for Blackwell",
    "bitsandbytes": "SGLang does not know the merged layers of this model",
    "gguf": "GGUF does not know this architecture",
    "auto-round": "its exclusions name merged layers; GPTQ and AWQ exports of the tool load",
}


def refuse(field: str, value: Any, allowed: str) -> NoReturn:
    """Raise the error of a quantised checkpoint that cannot be served."""
    raise ValueError(f"MiniCPM-SALA: quantization_config.{field} = {value!r} is not supported; allowed: {allowed}")


@dataclass(frozen=True)
class Said:
    """What a configuration says of a linear layer.

    scheme: None where the weight has 16 bits. certain: False where the tools of a method leave it to the files which
    layers are quantised. why: the field that says so.
    """

    scheme: Scheme | None
    certain: bool
    why: str


class Rules(ABC):
    """The configuration of one method. Raises ValueError for what cannot be served when it is made."""

    names: tuple[str, ...] = ()  # under which --quantization may ask for it

    def __init__(self, given: Mapping[str, Any]):
        self.given = given

    @abstractmethod
    def of(self, linear: str) -> Said:
        """What is said of the released layer ``linear``, such as ``model.layers.0.self_attn.q_proj``."""

    def one_of(self, field: str, allowed: tuple, default: Any = None) -> Any:
        value = self.given.get(field, default)
        # 1 and True are equal, and "4" is no number.
        if not any(value == one and type(value) is type(one) for one in allowed):
            refuse(field, value, ", ".join(map(repr, allowed)))
        return value


class GPTQRules(Rules):
    """AutoGPTQ, GPTQModel and their forks."""

    names = ("gptq", "gptq_marlin", "marlin")

    def __init__(self, given: Mapping[str, Any]):
        super().__init__(given)
        self.one_of("sym", (True,))
        self.one_of("checkpoint_format", ("gptq", "gptq_v2", ""), default="gptq")
        self.one_of("is_marlin_format", (False,), default=False)
        self.one_of("lm_head", (False,), default=False)
        self.base = self._scheme(given)
        self.dynamic = given.get("dynamic") or {}
        blocks = given.get("modules_in_block_to_quantize")
        self.quantised = None if blocks is None else {name for block in blocks for name in as_list(block)}

    def _scheme(self, given: Mapping[str, Any], where: str = "") -> GPTQ:
        fields = {"bits": (4, 8), "group_size": (-1, *GROUPS), "desc_act": (False, True), "sym": (True,)}
        for field, allowed in fields.items():
            if not any(given.get(field) == one and type(given.get(field)) is type(one) for one in allowed):
                refuse(where + field, given.get(field), ", ".join(map(repr, allowed)))
        return GPTQ(given["bits"], given["group_size"], given["desc_act"] and given["group_size"] != -1)

    def of(self, linear: str) -> Said:
        inside = re.sub(r"^model\.layers\.\d+\.", "", linear)
        if self.quantised is not None and inside not in self.quantised:
            return Said(None, True, "modules_in_block_to_quantize")
        for pattern, changes in self.dynamic.items():
            if not re.match(pattern.removeprefix("-:").removeprefix("+:"), linear):
                continue
            where = f"dynamic[{pattern!r}]"
            if pattern.startswith("-:"):
                return Said(None, True, where)
            return Said(self._scheme({**self.given, **changes}, f"{where}."), False, where)
        return Said(self.base, False, "bits, group_size and desc_act")


class AWQRules(Rules):
    """AutoAWQ and AWQ exports of other tools."""

    names = ("awq", "awq_marlin")

    def __init__(self, given: Mapping[str, Any]):
        super().__init__({"bits": given.get("w_bit"), "group_size": given.get("q_group_size"), **given})
        self.one_of("bits", (4,))
        self.one_of("zero_point", (True,))
        self.one_of("version", ("gemm", "GEMM"), default="gemm")
        self.one_of("lm_head", (False,), default=False)
        self.base = AWQ(self.one_of("group_size", GROUPS))
        self.excluded = given.get("modules_to_not_convert") or []

    def of(self, linear: str) -> Said:
        if any(part in linear for part in self.excluded):
            return Said(None, True, "modules_to_not_convert")
        return Said(self.base, False, "bits and group_size")


class FP8Rules(Rules):
    """``quant_method: fp8``: a scale per tensor, or per block of 128 × 128."""

    names = ("fp8",)

    def __init__(self, given: Mapping[str, Any]):
        super().__init__(given)
        self.one_of("fmt", ("e4m3", "float8_e4m3fn"), default="e4m3")
        self.one_of("scale_fmt", (None,))
        self.one_of("kv_cache_scheme", (None,))
        activations = self.one_of("activation_scheme", ("dynamic", "static"), default="dynamic")
        block = given.get("weight_block_size")
        if block not in (None, [FP8_BLOCK, FP8_BLOCK]):
            refuse("weight_block_size", block, f"None, [{FP8_BLOCK}, {FP8_BLOCK}]")
        if block and activations == "static":
            refuse("activation_scheme", activations, "'dynamic' with weight_block_size")
        self.base = Float8("block", False, "weight_scale_inv") if block else Float8("tensor", activations == "static")
        self.excluded = [*(given.get("ignored_layers") or ()), *(given.get("modules_to_not_convert") or ())]

    def of(self, linear: str) -> Said:
        # Whole parts of the path, in a row.
        if any(f".{part}." in f".{linear}." for part in self.excluded):
            return Said(None, True, "ignored_layers")
        return Said(self.base, True, "quant_method")


class Int8Rules(Rules):
    """``quant_method: w8a8_int8``."""

    names = ("w8a8_int8",)

    def of(self, linear: str) -> Said:
        if matches(self.given.get("ignore") or (), linear):
            return Said(None, True, "ignore")
        return Said(Int8(), True, "quant_method")


class CompressedTensorsRules(Rules):
    """llm-compressor's files: groups of layers with a scheme each, and layers that are left out."""

    names = ("compressed-tensors", "compressed_tensors")
    formats = ("float-quantized", "naive-quantized", "int-quantized", "pack-quantized")

    def __init__(self, given: Mapping[str, Any]):
        super().__init__(given)
        self.one_of("quantization_status", ("compressed", "frozen"), default="compressed")
        # Scales of keys and values are used with --kv-cache-dtype fp8_e4m3; without it these have the model's dtype.
        if given.get("kv_cache_scheme"):
            _check("kv_cache_scheme", given["kv_cache_scheme"], {
                "type": ("float",), "num_bits": (8,), "symmetric": (True,), "dynamic": (False,),
                "strategy": ("tensor", "attn_head"),
            })  # fmt: skip
        for field in ("sparsity_config", "transform_config"):
            if given.get(field):
                refuse(field, given[field], "None")
        self.groups = {
            name: (group["targets"], self._scheme(name, group)) for name, group in given["config_groups"].items()
        }
        if self.of(HEAD).scheme is not None:
            refuse("ignore", given.get("ignore") or [], f"lists with {HEAD!r}: the head is served in 16 bits")

    def of(self, linear: str) -> Said:
        if matches(self.given.get("ignore") or (), linear):
            return Said(None, True, "ignore")
        by_name = [name for name, (targets, _) in self.groups.items() if matches(targets, linear)]
        found = by_name or [name for name, (targets, _) in self.groups.items() if "Linear" in targets]
        schemes = {self.groups[name][1] for name in found}
        if len(schemes) > 1:
            refuse("config_groups", found, f"one scheme for {linear}")
        return Said(next(iter(schemes), None), True, f"config_groups.{found[0]}" if found else "config_groups")

    def _scheme(self, name: str, group: Mapping[str, Any]) -> Scheme:
        where = f"config_groups.{name}"
        storage = group.get("format") or self.given.get("format")
        if storage not in self.formats:
            refuse("format", storage, ", ".join(map(repr, self.formats)))
        if group.get("output_activations"):
            refuse(f"{where}.output_activations", group["output_activations"], "None")
        weights, activations = group["weights"], group.get("input_activations")
        if weights.get("dynamic"):
            refuse(f"{where}.weights.dynamic", weights["dynamic"], "False")
        if storage == "pack-quantized":
            return _packed(where, weights, activations)
        if (weights["type"], weights["num_bits"]) not in (("float", 8), ("int", 8)):
            refuse(f"{where}.weights", {name: weights[name] for name in ("type", "num_bits")}, "float or int of 8 bits")
        return (
            _float8(where, weights, activations) if weights["type"] == "float" else _int8(where, weights, activations)
        )


def _packed(where: str, weights: Mapping[str, Any], activations: Mapping[str, Any] | None) -> Scheme:
    _check(f"{where}.weights", weights, {
        "type": ("int",), "num_bits": (4, 8), "symmetric": (True,), "strategy": ("group", "channel"),
        "actorder": (None, "static", "weight"),
    })  # fmt: skip
    if activations:
        refuse(f"{where}.input_activations", activations, "None with pack-quantized weights")
    grouped = weights["strategy"] == "group"
    _check(f"{where}.weights", weights, {"group_size": GROUPS if grouped else (None, -1)})
    return PackedIntegers(weights["num_bits"], weights["group_size"] if grouped else -1)


def _float8(where: str, weights: Mapping[str, Any], activations: Mapping[str, Any] | None) -> Scheme:
    _check(f"{where}.weights", weights, {"symmetric": (True,), "strategy": ("tensor", "channel", "block")})
    if not activations:
        refuse(f"{where}.input_activations", activations, "activations in FP8, as SGLang's products have them")
    strategy = weights["strategy"]
    if strategy == "block":
        _check(f"{where}.weights", weights, {"block_structure": ([FP8_BLOCK, FP8_BLOCK],)})
    allowed = (True, False) if strategy == "tensor" else (True,)
    _check(f"{where}.input_activations", activations, {
        "type": ("float",), "num_bits": (8,), "symmetric": (True,), "dynamic": allowed,
    })  # fmt: skip
    return Float8(strategy, not activations["dynamic"])


def _int8(where: str, weights: Mapping[str, Any], activations: Mapping[str, Any] | None) -> Scheme:
    _check(f"{where}.weights", weights, {"symmetric": (True,), "strategy": ("channel",)})
    if not activations:
        refuse(f"{where}.input_activations", activations, "activations in int8, as SGLang's products have them")
    _check(f"{where}.input_activations", activations, {
        "type": ("int",), "num_bits": (8,), "symmetric": (True,), "dynamic": (True,),
    })  # fmt: skip
    return Int8()


def _check(where: str, given: Mapping[str, Any], fields: Mapping[str, tuple]) -> None:
    for field, allowed in fields.items():
        if given.get(field) not in allowed:
            refuse(f"{where}.{field}", given.get(field), ", ".join(map(repr, allowed)))


def matches(patterns: Iterable[str], linear: str) -> bool:
    """Whether a name or ``re:`` pattern of compressed-tensors is that of the layer."""
    return any(
        re.match(one.removeprefix("re:"), linear) if one.startswith("re:") else one == linear for one in patterns
    )


def as_list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


METHODS: dict[str, type[Rules]] = {
    "gptq": GPTQRules,
    "awq": AWQRules,
    "fp8": FP8Rules,
    "compressed-tensors": CompressedTensorsRules,
    "w8a8_int8": Int8Rules,
}


def make_rules(given: Mapping[str, Any]) -> Rules:
    """The rules of a ``quantization_config``. Raises ValueError for methods and values that are not served."""
    method = given.get("quant_method")
    if method not in METHODS:
        reason = f" ({UNSUPPORTED[method]})" if method in UNSUPPORTED else ""
        refuse("quant_method", method, ", ".join(map(repr, METHODS)) + reason)
    try:
        return METHODS[method](given)
    except KeyError as error:
        refuse(error.args[0], None, f"a value, as {method} has it")
