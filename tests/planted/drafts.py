"""Mistakes in the trainer of drafts."""

from tests.planted.mistake import Mistake

UNROLLED = "tests/training/test_eagle3.py::test_unrolled_steps_are_those_of_the_server"
ALIGNED = "tests/training/test_drafts.py::test_losses_are_those_of_the_same_tokens"
EAGLE3, TRAIN = "training/drafts/eagle3.py", "training/drafts/train.py"

DRAFTS = (
    Mistake(
        "drafts: inputs of layers for their outputs",
        "training/drafts/target.py",
        "layers[layer + 1]",
        "layers[layer]",
        "tests/training/test_drafts.py::test_captured_states_are_outputs_of_layers",
    ),
    Mistake("drafts: a head reads the token of the state", EAGLE3, "join(embeds[1:],", "join(embeds[:-1],", UNROLLED),
    Mistake(
        "drafts: a step stays at its base's position", EAGLE3, "at = bases + step", "at = bases + 0 * step", UNROLLED
    ),
    Mistake(
        "drafts: a step forgets the ones before",
        EAGLE3,
        "visible = torch.cat((visible, own), dim=1)",
        "visible = torch.cat((visible, own & (step < 2)), dim=1)",
        UNROLLED,
    ),
    Mistake(
        "drafts: d2t holds tokens, not differences",
        EAGLE3,
        "token_ids - torch.arange(len(token_ids))",
        "token_ids",
        "tests/training/test_eagle3.py::test_draft_tokens_are_the_targets",
    ),
    Mistake("drafts: the target's distribution is a token early", TRAIN, "last[bases + 1]", "last[bases]", ALIGNED),
    Mistake("drafts: every step learns what the first does", TRAIN, "wanted[rows + step]", "wanted[rows]", ALIGNED),
    Mistake(
        "drafts: a draft counts for the token before it",
        TRAIN,
        "(bases + 2 + step)",
        "(bases + 1 + step)",
        "tests/training/test_drafts.py::test_a_draft_that_knows_the_answers_is_accepted",
    ),
    Mistake(
        "drafts: a resumed run has a new optimizer",
        "training/saved_runs.py",
        "optimizer.load_state_dict(saved)",
        "pass",
        "tests/training/test_drafts.py::test_resumed_run_is_the_whole_run",
    ),
    Mistake(
        "drafts: a cut line of answers stays",
        "training/drafts/answers.py",
        'content[: content.rfind(b"\\n") + 1]',
        "content",
        "tests/training/test_answers.py::test_an_interrupted_run_goes_on",
    ),
)
