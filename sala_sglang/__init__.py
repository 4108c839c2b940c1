"""sala-sglang: serve MiniCPM-SALA on SGLang with its exact semantics."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("sala-sglang")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

TESTED_SGLANG_VERSIONS = ("0.5.23",)
