"""What decides about the bytes of keys, values and states beside tokens, rank and weights."""

import dataclasses
import hashlib
import json
from importlib.metadata import version
from typing import Any

from sala_sglang import __version__, environment
from sala_sglang.config import SALAConfig


def facts(config: SALAConfig, *dtypes: Any) -> dict[str, Any]:
    """By their names; dtypes: those of the model, and of its keys and values."""
    return {
        "versions": [__version__, version("sglang")],
        "config": {field.name: getattr(config, field.name) for field in dataclasses.fields(config)},
        "dense_len": environment.dense_len_tokens(config),
        "dtypes": [str(dtype) for dtype in dtypes],
    }


def digest(known: dict[str, Any]) -> str:
    """32 hexadecimal digits of what is known."""
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:32]
