"""The benchmark of files after a restart without an engine: what it asks."""

from benchmarks.serving import restart


def asked(worker: str) -> list[list[int]]:
    words = f"--model x --output x.csv --files x --document 100 --documents 2 --question 40 --worker {worker}"
    return list(restart.prompts(500, restart.parse_arguments(words.split())))


def test_both_engines_are_asked_different_questions_about_the_same_documents():
    first, second = asked("first"), asked("second")
    assert [len(prompt) for prompt in first] == [140] * 3  # with the warm-up
    for one, other in zip(first, second, strict=True):
        assert one[:100] == other[:100] and one[100:] != other[100:]
    assert len({tuple(prompt[:100]) for prompt in first}) == 3
    assert asked("first") == first
