"""FlashInfer's sampling kernels, by which SGLang samples: compiled before the first request that has a temperature.

Their compilation takes nvcc more than a minute. It runs in a process of its own, which FlashInfer tells nothing of the
GPU but its compute capability: CUDA takes memory there for every process that uses it, and pools are sized meanwhile.
"""

import os
import subprocess
import sys

from sala_kernels.targets import Capability

ARCHITECTURES = "FLASHINFER_CUDA_ARCH_LIST"  # FlashInfer's variable


def start_compiling(capability: Capability) -> subprocess.Popen:
    """A process that compiles what FlashInfer's cache lacks; a request that comes meanwhile waits for its end."""
    architectures = os.environ.get(ARCHITECTURES, "{}.{}".format(*capability))
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        env=os.environ | {ARCHITECTURES: architectures},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def problem(process: subprocess.Popen) -> str:
    """Wait for the end of ``process``; why it failed, by a compiler's first error or its last line, or nothing."""
    _, said = process.communicate()
    if not process.returncode:
        return ""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if " error: " in line]
    return [*errors, *lines[-1:], f"it ended with {process.returncode}"][0]


def main() -> None:
    from flashinfer.jit.sampling import gen_sampling_module

    kernels = gen_sampling_module()
    if not kernels.is_aot:  # otherwise a package has them compiled
        kernels.build(need_lock=True)


if __name__ == "__main__":
    main()
