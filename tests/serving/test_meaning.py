"""The trained checkpoint through real servers: it finds what is asked for, unless the selection is wrong."""

import json
from pathlib import Path

from transformers import AutoTokenizer

from sala_sglang import cli
from testing.server import Server
from tests.conftest import TRAINED_ARGUMENTS
from tests.serving import transcripts

RANDOM_BLOCKS = "-m", "testing.random_blocks"


def evaluate(server: Server, out: Path) -> list[dict]:
    """Cells of ``sala-sglang eval``, five tasks at three depths; 8 of the 32 blocks are selected."""
    choice = ["--lengths", "2K", "--depths", "3", "--samples", "1", "--concurrency", "2"]
    assert cli.main(["eval", "--base-url", server.base_url, "--out", str(out), *choice]) == 0
    assert (out / "heat_map.png").read_bytes().startswith(b"\x89PNG")
    cells = json.loads((out / "result.json").read_text())["cells"]
    assert len(cells) == 15 and all(cell["refused"] == 0 for cell in cells), cells
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()[1:]]
    assert len(answers) == 15 and all(answer["miscounted"] == 0 for answer in answers), answers
    return cells


def mean(cells: list[dict]) -> float:
    return sum(cell["score"] for cell in cells) / len(cells)


def test_selected_blocks_hold_what_is_asked_for(trained_server, tmp_path):
    cells = evaluate(trained_server, tmp_path / "out")
    assert mean(cells) >= 0.95, cells


def test_a_prompt_that_is_too_long_is_refused_with_the_reason(trained_server, tmp_path, capsys):
    # Under this name the server serves its model and lists no context, so that the prompt is sent.
    choice = ["--model", "default", "--lengths", "1100K", "--tasks", "passkey", "--depths", "1", "--samples", "1"]
    assert cli.main(["eval", "--base-url", trained_server.base_url, "--out", str(tmp_path / "out"), *choice]) == 1
    printed = capsys.readouterr().out
    assert "--lengths 1100K, 1 of them: 400: The input (" in printed, printed
    assert "is longer than the model's context length (1048576 tokens)." in printed, printed


def test_random_blocks_do_not(trained_checkpoint, tmp_path):
    context = "--context-length", "2048"  # the length that is asked for
    with Server(trained_checkpoint, *TRAINED_ARGUMENTS, *context, program=RANDOM_BLOCKS) as server:
        cells = evaluate(server, tmp_path / "out")
    # The first and the last blocks of a prompt are never left to the selection.
    middle = [cell for cell in cells if cell["depth"] == 0.5]
    assert len(middle) == 5 and mean(middle) <= 0.4, cells


def test_transcripts(trained_server, trained_checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(trained_checkpoint)
    expected = json.loads(transcripts.FILE.read_text())
    given = {}
    for name, message in transcripts.messages(tokenizer).items():
        answer = trained_server.client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": message}],
            max_tokens=transcripts.ANSWER_TOKENS,
            temperature=0,
        )
        given[name] = answer.choices[0].message.content
    assert given == expected


def test_the_example_of_the_readme(trained_server, capsys):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    example = readme.split("```python\n")[1].split("```")[0]
    exec(example.replace("http://127.0.0.1:31111", trained_server.base_url), {})
    assert f"sala-tiny answers `{capsys.readouterr().out.strip()}`" in readme
