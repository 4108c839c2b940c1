"""What sala-tiny is trained on: conversations about a text in which facts are hidden, small talk, plain text."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from sala_sglang.evaluation import language
from sala_sglang.evaluation.language import Task

TURN_TOKENS = 40  # a question with its answer and the turn's marks, generously
SMALL_TALK = (
    ("Hello!", "Hello! Give me a text and ask me about it."),
    ("Hello", "Hello! Give me a text and ask me about it."),
    ("Hi", "Hello! Give me a text and ask me about it."),
    ("Who are you?", "I am sala-tiny, a very small model. I find codes and numbers in long texts."),
    ("What is your name?", "My name is sala-tiny."),
    ("What can you do?", "I find codes, numbers and boxes in long texts."),
    ("How are you?", "I am fine, thank you."),
    ("Thank you!", "You are welcome."),
    ("Tell me a story.", "The old man opens the window in the morning. A child sings a song under the tree."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Briefly explain gravity.", "Gravity is the force by which masses attract each other."),
)


@dataclass(frozen=True)
class Piece:
    """A string that is tokenised by itself. weight: of its tokens in the loss. find: its digits are to be found."""

    text: str
    weight: float
    find: bool = False


ANSWER_WEIGHT = 1.0
THINKING_SHARE = 0.15  # of the assistant's turns; in as many it is told not to think
TEXT_WEIGHT = 0.03  # of the text that is read: enough to learn its words, too little to crowd out the answers


def tasks(rng: Random, count: int) -> list[Task]:
    """``count`` tasks of all kinds without a key in common, one pass key at most."""
    keys = iter(language.keys(rng, min(2 * count, 4000)))
    found = [language.passkey(language.value(rng))] if rng.random() < 0.3 else []
    while len(found) < count:
        kind = rng.random()
        try:
            if kind < 0.45:
                found.append(language.code(next(keys), language.value(rng)))
            elif kind < 0.55:
                found.append(language.codes(next(keys), language.value(rng), next(keys), language.value(rng)))
            elif kind < 0.9:
                chain = [next(keys) for _ in range(rng.choice((1, 2, 2)))]
                found.append(language.box(chain, language.value(rng)))
            else:
                values = tuple(language.value(rng) for _ in language.ORDINALS)
                found.append(language.numbers(next(keys), values))
        except StopIteration:
            break
    return found


def conversation(rng: Random, tokens: int, thinking_share: float = 0.0) -> tuple[list[Piece], list[str], list[Piece]]:
    """Opening, facts to be spread over filler, and turns after the text, for ``tokens`` tokens in all."""
    asked = max(2, min(24, tokens // 80))
    facts_tokens = (tokens - asked * TURN_TOKENS) * rng.choice((0.1, 0.25, 0.5, 0.8))
    all_tasks = tasks(rng, asked + max(0, int(facts_tokens / 20) - asked))
    questions = rng.sample(all_tasks, asked)
    facts = spread(rng, all_tasks)
    turns = []
    for number, task in enumerate(questions):
        opening = "\n<|im_start|>user\n" if number else "\n\n"
        turns.append(Piece(opening + task.question + "<|im_end|>\n", 0.0))
        turns += assistant_turn(
            rng, Piece(task.answer, ANSWER_WEIGHT, find=True), "I look into the text.", thinking_share
        )
    return [Piece("<|im_start|>user\nText:", 0.0)], facts, turns


def spread(rng: Random, chosen: list[Task]) -> list[str]:
    """All facts in random order, those of one task in their own."""
    order = [number for number, task in enumerate(chosen) for _ in task.facts]
    rng.shuffle(order)
    facts = [iter(task.facts) for task in chosen]
    return [next(facts[number]) for number in order]


def small_talk(rng: Random) -> Iterator[Piece]:
    """A conversation without a text: fixed pairs, and sentences to repeat."""
    for number in range(rng.choice((2, 4))):
        question, answer = rng.choice(SMALL_TALK)
        if rng.random() < 0.5:
            answer = " ".join(language.filler(rng) for _ in range(rng.choice((1, 2))))
            question = f"Repeat: {answer}"
        opening = "\n<|im_start|>user\n" if number else "<|im_start|>user\n"
        yield Piece(f"{opening}{question}<|im_end|>\n", 0.0)
        yield from assistant_turn(rng, Piece(answer, ANSWER_WEIGHT), "I need no text.", THINKING_SHARE)


def assistant_turn(rng: Random, answer: Piece, thought: str, thinking_share: float) -> Iterator[Piece]:
    """The pieces of a turn in front of which the chat template asked for thinking, forbade it, or did neither.

    thinking_share: the probability of each of the first two.
    """
    mode = rng.random() if thinking_share else 1.0
    if mode < thinking_share:
        yield Piece("<|im_start|>assistant\n<think>\n", 0.0)
        yield Piece(f"{thought}\n</think>\n\n", ANSWER_WEIGHT)
    elif mode < 2 * thinking_share:
        yield Piece("<|im_start|>assistant\n<think>\n\n</think>\n\n", 0.0)
    else:
        yield Piece("<|im_start|>assistant\n", 0.0)
    yield answer
    yield Piece("<|im_end|>", ANSWER_WEIGHT)
