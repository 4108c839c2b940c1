"""Time of every operator on a GPU beside its floor and the libraries that could serve in its place, as CSV rows.

    python benchmarks/kernels.py --output benchmarks/results/kernels.csv

Released sizes, bfloat16, random inputs, one layer. What the server replays from CUDA graphs is timed in graphs, prefill
as eager calls behind a busy device; medians over calls that rotate through inputs larger than the L2 cache. Outputs are
compared with the references before they are timed. The copy bandwidth and matmul rate of the same run come first.
A peer that is not installed is left out.

    --only decode,lightning_chunk      rows that contain one of these words
    --implementations triton,cuda      side by side, where an operator has them
    --tensor-parallel 4                the sparse layers as one of four GPUs runs them
    --dry-run                          tiny sizes on the CPU
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Libraries look for a package `kernels`; with this directory on the path they would find this file.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from benchmarks.operators.run import main

    sys.exit(main(__doc__))
