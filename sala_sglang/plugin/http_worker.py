"""SGLang's HTTP application for a process of its own, as ``--tokenizer-worker-num`` starts several.

SGLang loads plugins in the process that starts a server, and in schedulers and detokenizers, but not here. It imports
``app`` by name: only then are they loaded, so that importing this module does nothing.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """The application, with the checks of requests. Raises AttributeError for any other name."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sglang.srt.plugins import load_plugins

    from sala_sglang.plugin.http_requests import prepare_frontend

    load_plugins()
    prepare_frontend()
    from sglang.srt.entrypoints.http_server import app

    return app
