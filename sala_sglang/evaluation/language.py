"""The little language of the retrieval tasks: filler sentences, facts to be found, questions, answers.

sala-tiny is trained on it, and the evaluation asks in it, so both come from here. All choices are made by the
``random.Random`` that is given.
"""

from dataclasses import dataclass
from itertools import pairwise
from random import Random


def _list(text: str, separator: str = " ") -> list[str]:
    return text.replace("\n", " ").split(separator)


ADJECTIVES = _list("""amber brave calm clever cold curious dark eager fair fast fierce fond free gentle giant glad
golden grand green grey happy hidden honest humble jolly keen kind large tiny lazy little lonely loud lucky merry mild
modest narrow noble odd pale patient plain polite proud purple quick quiet rapid rare red rich round royal rusty
shy silent silver simple sleepy slow small smart""")
ANIMALS = _list("""ant badger bat bear beaver bee bison camel cat cobra cow crab crane crow deer dog dolphin donkey duck
eagle eel falcon ferret fox frog goat goose hare hawk heron horse jackal koala lamb lark lion lizard llama lynx
mole moose moth mouse mule newt otter owl panda parrot pig pony quail rabbit raven seal shark sheep snail snake
spider swan tiger toad wolf""")

PEOPLE = _list(
    """The baker|The teacher|A farmer|The doctor|My neighbour|A sailor|The old man|The young woman|A child|The
gardener|The postman|My sister|Her brother|The painter|A student|The captain|Our guest|The driver|The nurse|A
carpenter""",
    "|",
)
ACTIONS = _list(
    """reads a book|drinks warm tea|writes a letter|sells fresh bread|paints the wall|opens the window|waits
for the train|carries a basket|repairs the roof|sings a song|closes the door|plants a tree|cooks the soup|counts the
coins|watches the rain|cleans the floor|looks for the key|tells a story|buys some apples|feeds the birds""",
    "|",
)
PLACES = _list(
    """in the garden|near the river|at the market|behind the house|in the kitchen|on the bridge|by the sea|under
the tree|at the station|in the village|on the hill|in the library|across the street|at the harbour|in the
mountains""",
    "|",
)
TIMES = _list(
    """in the morning|at noon|every evening|after lunch|before sunset|on Sunday|in the winter|in the summer|late at
night|once a week""",
    "|",
)

ORDINALS = ("first", "second", "third")

Key = tuple[str, str]  # adjective, animal


@dataclass(frozen=True)
class Task:
    """What a conversation asks for.

    facts: sentences to hide, in the order in which they must appear. values: the numbers that the answer must
    name, in its order.
    """

    facts: tuple[str, ...]
    question: str
    answer: str
    values: tuple[str, ...]


def filler(rng: Random) -> str:
    """One sentence of everyday life, without numbers."""
    person, action, place = rng.choice(PEOPLE), rng.choice(ACTIONS), rng.choice(PLACES)
    return f"{person} {action} {place}." if rng.random() < 0.5 else f"{person} {action} {place} {rng.choice(TIMES)}."


def keys(rng: Random, count: int) -> list[Key]:
    """``count`` different keys, of some 4,000 that there are."""
    animals = len(ANIMALS)
    chosen = rng.sample(range(len(ADJECTIVES) * animals), count)
    return [(ADJECTIVES[i // animals], ANIMALS[i % animals]) for i in chosen]


def value(rng: Random) -> str:
    """A number of four digits."""
    return str(rng.randrange(1000, 10000))


def passkey(number: str) -> Task:
    return Task(
        (f"The pass key is {number}. Remember it.",), "What is the pass key?", f"The pass key is {number}.", (number,)
    )


def code(key: Key, number: str) -> Task:
    return Task((_code(key, number),), f"What is the code of the {_name(key)}?", _code(key, number), (number,))


def codes(first: Key, first_number: str, second: Key, second_number: str) -> Task:
    """Two codes asked for at once."""
    facts = _code(first, first_number), _code(second, second_number)
    question = f"What are the codes of the {_name(first)} and the {_name(second)}?"
    return Task(facts, question, " ".join(facts), (first_number, second_number))


def numbers(key: Key, found: tuple[str, ...]) -> Task:
    """The three numbers of one key, each in a sentence of its own."""
    name = _name(key)
    facts = tuple(f"The {which} number of the {name} is {one}." for which, one in zip(ORDINALS, found, strict=True))
    return Task(facts, f"What are the three numbers of the {name}?", " ".join(facts), found)


def box(chain: list[Key], number: str) -> Task:
    """What the box of the last key holds: the first is set to the number, each further one to the one before.

    The answer follows the chain back, so that every step of it is one look into the text.
    """
    facts = [f"The box of the {_name(chain[0])} holds {number}."]
    for source, target in pairwise(chain):
        facts.append(f"The box of the {_name(target)} holds the box of the {_name(source)}.")
    question = f"What is in the box of the {_name(chain[-1])}?"
    return Task(tuple(facts), question, " ".join(reversed(facts)), (number,))


def user_message(sentences: list[str], question: str) -> str:
    """The text of a user's turn: the sentences, a blank line, the question."""
    return f"Text: {' '.join(sentences)}\n\n{question}"


def _code(key: Key, number: str) -> str:
    return f"The code of the {_name(key)} is {number}."


def _name(key: Key) -> str:
    return " ".join(key)
