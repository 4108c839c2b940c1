"""``sala-sglang doctor``: what is installed here, what would serve, and what is missing; and the ledger of touches.

Nothing here imports SGLang, whose import takes longer than everything else together.
"""

import importlib.util
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from itertools import zip_longest
from pathlib import Path
from pkgutil import iter_modules
from textwrap import wrap

from sala_sglang import TESTED_SGLANG_VERSIONS, __version__
from sala_sglang.plugin.touches import TOUCHES, Touch
from sala_sglang.plugin.touches.touch import PROCESSES

PLUGIN_GROUP, PLUGIN_NAME = "sglang.srt.plugins", "sala"
REQUIRED_PACKAGES = ("sglang", "torch", "triton", "transformers")
OPTIONAL_PACKAGES = ("cuda-bindings", "flashinfer-python", "flash-linear-attention")
KERNEL_MODULE = Path("/proc/driver/nvidia/version")  # not there under WSL
RELEASED_HEADS = (128, 16)  # their dimension, and query heads per KV head
MIN_COMPUTE_CAPABILITY = (8, 0)  # the first with bfloat16 arithmetic
TARGET_WIDTH, REASON_WIDTH = 46, 52  # columns of the ledger, which with the gap between them make 100


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``missing`` says what keeps a server from starting and how to get it."""

    what: str
    found: str
    missing: str = ""


def run() -> int:
    """Print the report; returns 0 when a server could start and 1 otherwise."""
    findings = [*_system(), *_packages()]
    if importlib.util.find_spec("torch"):
        findings += [*_gpu(), *_operators()]
    findings += _plugin()

    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        print(f"{finding.what:<{width}}  {finding.found}")
    missing = [finding.missing for finding in findings if finding.missing]
    print()
    for line in missing:
        print(f"missing: {line}")
    print("A server cannot start." if missing else "A server can start.")
    return 1 if missing else 0


def _system() -> list[Finding]:
    linux = platform.system() == "Linux"
    old = sys.version_info < (3, 11)
    return [
        Finding("Python", platform.python_version(), "Python 3.11 or later" if old else ""),
        Finding("operating system", platform.platform(), "" if linux else "Linux; SGLang runs on nothing else"),
    ]


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _packages() -> list[Finding]:
    findings = [Finding("sala-sglang", __version__)]
    for package in REQUIRED_PACKAGES:
        found, pin = _version_of(package), f"=={TESTED_SGLANG_VERSIONS[-1]}" if package == "sglang" else ""
        note = ""
        if package == "sglang" and found:
            tested = found in TESTED_SGLANG_VERSIONS
            note = " (tested)" if tested else f" (not tested; tested: {', '.join(TESTED_SGLANG_VERSIONS)})"
        missing = "" if found else f"{package}; get it with: pip install '{package}{pin}'"
        findings.append(Finding(package, f"{found or 'not installed'}{note}", missing))
    for package in OPTIONAL_PACKAGES:
        findings.append(Finding(package, _version_of(package) or "not installed (optional)"))
    return findings


def _driver() -> str | None:
    """Version of the NVIDIA driver, or None where there is none."""
    if KERNEL_MODULE.is_file():
        # NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  ...
        words = KERNEL_MODULE.read_text().splitlines()[0].split()
        return next((word for word in words if word[0].isdigit() and "." in word), "of unknown version")
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.split()[0]


def _gpu() -> list[Finding]:
    import torch

    driver = _driver()
    findings = [Finding("NVIDIA driver", driver or "none")]
    if not torch.cuda.is_available():
        usable = f"none that torch {torch.__version__} (CUDA {torch.version.cuda}) can use" if driver else "none"
        return [*findings, Finding("GPU", usable), Finding("would serve on", "CPU, slowly (give --device cpu)")]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        capability = (gpu.major, gpu.minor)
        least = ".".join(map(str, MIN_COMPUTE_CAPABILITY))
        too_old = f"a GPU of compute capability {least} or later, or --device cpu"
        findings.append(
            Finding(
                f"GPU {index}",
                f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute capability {gpu.major}.{gpu.minor}",
                too_old if capability < MIN_COMPUTE_CAPABILITY else "",
            )
        )
        findings += _holds(index, gpu.name, gpu.total_memory, capability)
    return [*findings, Finding("would serve on", "GPU")]


def _holds(index: int, name: str, memory_bytes: int, capability: tuple[int, int]) -> list[Finding]:
    """How long a request a GPU has room for."""
    if not importlib.util.find_spec("transformers"):  # our configuration is one of its classes
        return []
    from sala_sglang.cards import command

    return [Finding(f"GPU {index} holds", command.longest_contexts(name, memory_bytes, capability))]


def _operators() -> list[Finding]:
    import sala_kernels
    import torch
    from sala_kernels.contract import default_implementation
    from sala_kernels.layout import SparseGeometry
    from sala_kernels.sparse_attention import serving_implementation

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sparse = serving_implementation(device, torch.bfloat16, *RELEASED_HEADS, SparseGeometry().block_size)
    findings = []
    for operator in sorted(module.name for module in iter_modules(sala_kernels.__path__) if module.ispkg):
        chosen = sparse if operator == "sparse_attention" else default_implementation(device)
        module = f"{sala_kernels.__name__}.{operator}.{chosen}"
        missing = "" if importlib.util.find_spec(module) else f"{module}; reinstall sala-sglang"
        findings.append(Finding(f"operator {operator}", chosen, missing))
    return findings


def _plugin() -> list[Finding]:
    found = entry_points(group=PLUGIN_GROUP, name=PLUGIN_NAME)
    if not found:
        missing = f"the entry point {PLUGIN_NAME!r} of {PLUGIN_GROUP}; get it with: pip install sala-sglang"
        return [Finding("plugin", "not installed", missing)]
    try:
        from sala_sglang import environment
    except ImportError as error:
        return [Finding("plugin", "cannot be imported", f"what sala_sglang imports ({error}); reinstall sala-sglang")]
    off = ""
    allowed = [name.strip() for name in os.environ.get("SGLANG_PLUGINS", "").split(",") if name.strip()]
    if environment.is_set(environment.DISABLE):
        off = f"the plugin is switched off; unset {environment.DISABLE}"
    elif allowed and PLUGIN_NAME not in allowed:
        off = f"SGLANG_PLUGINS={','.join(allowed)} leaves the plugin out; add {PLUGIN_NAME} or unset it"
    return [Finding("plugin", "switched off" if off else "installed and on", off)]


def print_touches() -> int:
    """Print every touch on SGLang by process, with its means, reason, end, and the thread at SGLang; returns 0."""
    tested = ", ".join(TESTED_SGLANG_VERSIONS)
    print(f"{len(TOUCHES)} touches on SGLang, tested with {tested}; installed: {_version_of('sglang') or 'none'}")
    for process, meaning in PROCESSES.items():
        print(f"\n{process.upper()}: {meaning}\n")
        print(_row("what is touched, and how", "why, and until when"))
        print(_row("-" * TARGET_WIDTH, "-" * REASON_WIDTH))
        for touch in TOUCHES:
            if touch.process == process:
                print("\n".join([*_rows(touch), ""]))
    return 0


def _rows(touch: Touch) -> list[str]:
    """The lines of one touch."""
    means = f"{touch.how}: {', '.join(touch.names)}" if touch.names else touch.how
    left = [*_wrap_path(touch.target), *wrap(f"[{means}]", TARGET_WIDTH, initial_indent="  ", subsequent_indent="  ")]
    until = touch.until if touch.stays else f"until {touch.until}"
    notes = [touch.why, touch.when and f"only: {touch.when}", until, touch.upstream]
    right = [line for note in notes for line in wrap(note, REASON_WIDTH, break_on_hyphens=False)]
    return [_row(*cells) for cells in zip_longest(left, right, fillvalue="")]


def _row(target: str, reason: str) -> str:
    return f"{target:<{TARGET_WIDTH}}  {reason}".rstrip()


def _wrap_path(path: str) -> list[str]:
    """A dotted path in lines that end with dots."""
    lines = [""]
    for part in path.replace(".", ".\n").split("\n"):
        if lines[-1] and len(lines[-1] + part) > TARGET_WIDTH:
            lines.append("  ")
        lines[-1] += part
    return lines
