"""The environment options of the plugin: each with its default, its effect and why it exists."""

import os

from sala_kernels import targets

from sala_sglang import __version__
from sala_sglang.config import SALAConfig

# Unset: the plugin serves MiniCPM-SALA. "1": SGLang runs as if the plugin were not installed.
DISABLE = "SALA_DISABLE"

# Unset: prompts below dense_len are dense. "1": every token selects blocks, as the flag --dense-as-sparse
# asks for. The name is SGLang's own, so that scripts written for its built-in backend keep working.
DENSE_AS_SPARSE = "SGLANG_MINICPM_DENSE_AS_SPARSE"

# Unset: block selection from dense_len on. "1": full attention at every length, to compare against.
FORCE_DENSE = "SGLANG_MINICPM_FORCE_DENSE"

# Unset: 8192. Tokens of a prompt between the snapshots that the prefix cache keeps of its recurrent states, besides
# those at its end and where prompts part. A snapshot of the released model takes as much memory as 6,100 tokens of KV.
SNAPSHOT_SPACING = "SALA_SNAPSHOT_SPACING"
DEFAULT_SNAPSHOT_SPACING = 8192

# Unset: models/pipeline.py says which layers pipeline stages have. Otherwise the number of layers of every stage, with
# commas between them. The name is SGLang's own.
LAYER_PARTITION = "SGLANG_PP_LAYER_PARTITION"

# Unset: recurrent states are float32, and nothing else is possible. SGLang's --mamba-ssm-dtype sets it.
STATE_DTYPE = "SGLANG_MAMBA_SSM_DTYPE"

# Unset: SGLang's products, but for those of 16 bits that were measured to be slower than this project's. "rows": own
# products of few rows wherever they can be used, quantised weights included, to measure them in a server.
OWN_PRODUCTS = "SALA_OWN_PRODUCTS"
ROWS = "rows"
# Unset: a GPU takes the paths that were measured on its generation. "NAME=on,NAME=off", the names of
# sala_kernels.targets.PATHS: takes or leaves them, so that tests and benchmarks on one GPU can run each of them.
PATHS = "SALA_PATHS"

# Set by the plugin itself for the processes of a server: they end when the one that started them has ended.
END_WITH_PARENT = "SALA_END_WITH_PARENT"

NEVER_SPARSE = 2**31 - 1  # tokens; longer than any context


def is_set(name: str) -> bool:
    """Whether the environment switches ``name`` on."""
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")


def snapshot_spacing_tokens() -> int:
    """Tokens between the snapshots inside a prompt. Raises ValueError unless that is a positive integer."""
    given = os.environ.get(SNAPSHOT_SPACING, str(DEFAULT_SNAPSHOT_SPACING))
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"{SNAPSHOT_SPACING} = {given!r} is not possible; allowed: a positive number of tokens")
    return int(given)


def own_rows() -> bool:
    """Whether own products of few rows are asked for. Raises ValueError for another word than ROWS."""
    given = os.environ.get(OWN_PRODUCTS, "").strip()
    if given not in ("", ROWS):
        raise ValueError(f"{OWN_PRODUCTS} = {given!r} is not possible; allowed: {ROWS!r}")
    return given == ROWS


def check_state_dtype() -> None:
    """Raise ValueError where the environment asks for states of another dtype than float32."""
    given = os.environ.get(STATE_DTYPE, "float32")
    if given != "float32":
        raise ValueError(f"{STATE_DTYPE} = {given!r} is not possible; allowed: float32")


def forced_paths() -> dict[str, bool]:
    """Which paths to take or to leave. Raises ValueError unless each has a name that there is, and "on" or "off"."""
    given = os.environ.get(PATHS, "")
    pairs = [part.partition("=") for part in given.split(",") if part]
    for name, _, state in pairs:
        if name not in targets.PATHS or state not in ("on", "off"):
            allowed = f"NAME=on or NAME=off, separated by commas, of {', '.join(targets.PATHS)}"
            raise ValueError(f"{PATHS} = {given!r} is not possible; allowed: {allowed}")
    return {name: state == "on" for name, _, state in pairs}


def shared() -> dict[str, str | None]:
    """What has to be the same on all ranks of a server, by its name; None for a variable that is not set here.

    On several nodes each has its own environment.
    """
    values = {
        DENSE_AS_SPARSE: str(is_set(DENSE_AS_SPARSE)),
        FORCE_DENSE: str(is_set(FORCE_DENSE)),
        SNAPSHOT_SPACING: str(snapshot_spacing_tokens()),
        OWN_PRODUCTS: ROWS if own_rows() else "",
        LAYER_PARTITION: os.environ.get(LAYER_PARTITION, ""),
        PATHS: ",".join(f"{name}={'on' if taken else 'off'}" for name, taken in sorted(forced_paths().items())),
    }
    return {"sala-sglang": __version__} | {name: values[name] if name in os.environ else None for name in values}


def dense_len_tokens(config: SALAConfig) -> int:
    """Length from which requests select blocks, in tokens, after the environment's say.

    Raises ValueError when both switches are on, since they contradict each other.
    """
    if is_set(DENSE_AS_SPARSE) and is_set(FORCE_DENSE):
        raise ValueError(f"{DENSE_AS_SPARSE} and {FORCE_DENSE} are both on; allowed: one of them")
    if is_set(DENSE_AS_SPARSE):
        return 0
    if is_set(FORCE_DENSE):
        return NEVER_SPARSE
    return config.sparse_geometry.dense_len
