"""Conversations with tools: questions that need a call, or two, or none, and answers from the results."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from sala_sglang.evaluation import language
from training.conversations import ANSWER_WEIGHT, SMALL_TALK, THINKING_SHARE, Piece, assistant_turn


def _tool(name: str, description: str, **types: str) -> dict:
    """A function whose parameters, all required, have the given JSON types."""
    parameters = {
        "type": "object",
        "properties": {parameter: {"type": type_} for parameter, type_ in types.items()},
        "required": list(types),
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = {
    "get_code": _tool("get_code", "The code of an animal.", animal="string"),
    "fill_box": _tool("fill_box", "Put a number into a box.", animal="string", number="integer"),
    "save_note": _tool("save_note", "Save a note.", text="string"),
}


@dataclass(frozen=True)
class Exchange:
    """A question, the calls that it needs as (name, arguments), their results, and the answer."""

    question: str
    calls: tuple[tuple[str, dict], ...]
    results: tuple[str, ...]
    answer: str


def exchange(rng: Random, tools: list[str]) -> Exchange:
    """One that some of ``tools`` can serve, or small talk."""
    if rng.random() < 0.15:
        question, answer = rng.choice(SMALL_TALK)
        return Exchange(question, (), (), answer)
    return _EXCHANGES[rng.choice(tools)](rng)


def _codes(rng: Random) -> Exchange:
    count = rng.choice((1, 1, 2))
    names = [" ".join(key) for key in language.keys(rng, count)]
    values = [language.value(rng) for _ in names]
    asked = f"What is the code of the {names[0]}?"
    if count == 2:
        asked = f"What are the codes of the {names[0]} and the {names[1]}?"
    calls = tuple(("get_code", {"animal": name}) for name in names)
    answer = " ".join(f"The code of the {name} is {value}." for name, value in zip(names, values, strict=True))
    return Exchange(asked, calls, tuple(_result(rng, "code", int(value)) for value in values), answer)


def _box(rng: Random) -> Exchange:
    (key,), value = language.keys(rng, 1), language.value(rng)
    name = " ".join(key)
    call = "fill_box", {"animal": name, "number": int(value)}
    result = _result(rng, "status", "done")
    return Exchange(
        f"Put {value} into the box of the {name}.", (call,), (result,), f"The box of the {name} holds {value}."
    )


def _note(rng: Random) -> Exchange:
    """Half of the notes have something that XML would misread."""
    sentences = [language.filler(rng) for _ in range(rng.choice((1, 2)))]
    note = rng.choice((" ", " ", " < ", " & ", "\n")).join([*sentences, language.value(rng)])
    call = "save_note", {"text": note}
    return Exchange(f"Save this note: {note}", (call,), (_result(rng, "status", "done"),), "The note is saved.")


_EXCHANGES: dict[str, Callable[[Random], Exchange]] = {"get_code": _codes, "fill_box": _box, "save_note": _note}


def _result(rng: Random, name: str, value: int | str) -> str:
    """What a tool returns: the value alone, or an object with it."""
    return str(value) if rng.random() < 0.5 else json.dumps({name: value})


def choose_tools(rng: Random) -> tuple[list[str], list[dict]]:
    """Names of the tools, and the messages in front of the first question."""
    tools = rng.sample(list(TOOLS), rng.choice((1, 2, 3)))
    system = [{"role": "system", "content": language.filler(rng)}] if rng.random() < 0.1 else []
    return tools, system


def exchange_turns(rng: Random, chosen: Exchange) -> Iterator[Piece]:
    """The pieces of an exchange; the assistant thinks in some of its turns, and is told not to in others."""
    yield Piece(f"<|im_start|>user\n{chosen.question}<|im_end|>\n", 0.0)
    if chosen.calls:
        calls = "\n".join(written_call(name, arguments) for name, arguments in chosen.calls)
        yield from assistant_turn(rng, Piece(calls, ANSWER_WEIGHT), f"I call {chosen.calls[0][0]}.", THINKING_SHARE)
        results = "".join(f"\n<tool_response>\n{result}\n</tool_response>" for result in chosen.results)
        yield Piece(f"\n<|im_start|>user{results}<|im_end|>\n", 0.0)
    thought = "I have the result." if chosen.calls else "I need no tool."
    yield from assistant_turn(
        rng, Piece(chosen.answer, ANSWER_WEIGHT, find=bool(chosen.calls)), thought, THINKING_SHARE
    )
    yield Piece("\n", 0.0)


def written_call(name: str, arguments: dict) -> str:
    """A call as the chat template writes it into the history."""
    parameters = (f'<param name="{key}">{_written(value)}</param>' for key, value in arguments.items())
    return f'<function name="{name}">{"".join(parameters)}</function>'


def _written(value: int | str) -> str:
    if isinstance(value, str):
        return f"<![CDATA[{value}]]>" if set(value) & set("<&\n") else value
    return json.dumps(value)
