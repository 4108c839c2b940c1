"""``sglang.launch_server`` with a draft model, some of whose drafts come from a file, which a test rewrites as it goes.

The file is that of ``testing/injected_drafts.py``, but for ``right`` = null: then the drafts are the model's own, which
are written to a file beside it, a line of JSON per request and step: ``known`` tokens, and ``drafts`` behind them.
"""

import json
import os
import runpy
from pathlib import Path
from typing import Any

from testing.injected_drafts import VARIABLE, FromFile, read

DRAFT = "sglang.srt.speculative.eagle_worker_v2.EagleDraftWorker.draft"


def log_path(path: Path) -> Path:
    """Where the model's own drafts are written, by the file of injected ones."""
    return path.with_suffix(".log")


def draft(original: Any, worker: Any, batch: Any, **others: Any) -> Any:
    """SGLang's draft of the next rows of ``batch``, which are verified afterwards."""
    verified = original(worker, batch, **others)
    rows = verified.draft_token.view(len(batch.reqs), -1)
    injected = read()["right"] is not None
    proposer = FromFile(rows.shape[1] - 1)
    for request, row in zip(batch.reqs, rows, strict=True):
        known = [*request.origin_input_ids, *request.output_ids]
        assert known[-1] == int(row[0])
        if injected:
            row[1:] = row.new_tensor(proposer.propose(request.rid, known))
        else:
            with log_path(Path(os.environ[VARIABLE])).open("a") as log:
                log.write(json.dumps({"known": known, "drafts": row[1:].tolist()}) + "\n")
    return verified


if __name__ in ("__main__", "__mp_main__"):
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(DRAFT, draft, HookType.AROUND)

if __name__ == "__main__":
    runpy.run_module("sglang.launch_server", run_name="__main__")
