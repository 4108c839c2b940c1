"""Mistakes to plant into a copy of the tree, each with the test that must find it: ``python -m tests.planted``."""

from tests.planted.ahead import AHEAD
from tests.planted.disaggregation import DISAGGREGATION
from tests.planted.documents import DOCUMENTS
from tests.planted.drafts import DRAFTS
from tests.planted.fp8 import FP8
from tests.planted.kernels import KERNELS
from tests.planted.mistake import Mistake
from tests.planted.plugin import PLUGIN
from tests.planted.quantization import QUANTIZATION
from tests.planted.serving import SERVING
from tests.planted.speculation import SPECULATION
from tests.planted.storage import STORAGE
from tests.planted.tools import TOOLS

MISTAKES: tuple[Mistake, ...] = (
    *KERNELS,
    *FP8,
    *SERVING,
    *PLUGIN,
    *STORAGE,
    *DISAGGREGATION,
    *TOOLS,
    *QUANTIZATION,
    *DOCUMENTS,
    *SPECULATION,
    *AHEAD,
    *DRAFTS,
)
