"""SGLang's HTTP application for a process of its own, as ``--tokenizer-worker-num`` starts several.

SGLang loads plugins in the process that starts a server, and in schedulers and detokenizers, but not here.
"""

from sglang.srt.plugins import load_plugins

from sala_sglang.plugin.http_requests import prepare_frontend

load_plugins()
prepare_frontend()

from sglang.srt.entrypoints.http_server import app  # noqa: E402  after the hooks

__all__ = ["app"]
