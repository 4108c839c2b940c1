"""The EAGLE3 head that was trained for sala-tiny: fewer steps, the same answers."""

from pathlib import Path

import pytest

from testing.server import Server
from tests.conftest import TRAINED_ARGUMENTS

HEAD = Path(__file__).parents[2] / "checkpoints" / "sala-tiny-eagle3"
TEXTS = (
    "The baker sings a song. The code of the red fox is 4711. The nurse drinks warm tea. ",
    "Once upon a time there was a small house near the river. ",
)


@pytest.mark.skipif(not HEAD.exists(), reason="needs checkpoints/sala-tiny-eagle3")
def test_trained_head(trained_server, trained_checkpoint):
    sampling = {"max_new_tokens": 60, "temperature": 0, "ignore_eos": True}
    bodies = [{"text": text * 3, "sampling_params": sampling} for text in TEXTS]
    plain = [trained_server.post("/generate", body)["output_ids"] for body in bodies]
    drafts = "--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(HEAD)
    with Server(trained_checkpoint, *drafts, *TRAINED_ARGUMENTS) as server:
        answers = [server.post("/generate", body) for body in bodies]
        assert [answer["output_ids"] for answer in answers] == plain
        accepted = [answer["meta_info"]["spec_accept_length"] for answer in answers]
        assert max(accepted) > 1.5, accepted
        assert not any(server.idle_counters().values())
