"""How RULER's tasks are asked, and what comes of one."""

from dataclasses import dataclass, field
from typing import Any

# In the language of sala-tiny, which knows no other; made from the samples of ``sala-sglang eval``.
OWN = ("sala_passkey", "sala_key-value")


@dataclass(frozen=True)
class Settings:
    """How lm-eval asks.

    chat: messages, and the server applies its chat template; otherwise lm-eval makes the whole prompt, of which it
    sends the token ids unless ``as_text``. template: whether there is one. twice: whether the text of the message has
    it already. arguments: lm-eval's ``--model_args``; None is the context of the server. request: its ``--gen_kwargs``.
    """

    chat: bool = False
    template: bool = True
    twice: bool = False
    as_text: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    request: dict[str, Any] = field(default_factory=dict)


RECIPE = "recipe"
# The server goes on with the answer that lm-eval begins, and does not think first: RULER allows 30 to 128 tokens.
CONTINUED = {"continue_final_message": True, "chat_template_kwargs": {"enable_thinking": False}}
SETTINGS = {
    RECIPE: Settings(chat=True, request=CONTINUED),
    "token ids": Settings(arguments={"max_length": None}),
    "answer not begun": Settings(chat=True),
    "max_length 2048": Settings(),
    "no template": Settings(template=False, as_text=True),
    "template twice": Settings(chat=True, twice=True, request=CONTINUED),
    "bos": Settings(arguments={"max_length": None, "add_bos_token": True}),
    "2 new tokens": Settings(chat=True, request=CONTINUED | {"max_gen_toks": 2}),
}


@dataclass(frozen=True)
class Found:
    """What was found. score: mean of the ``answered`` samples, 0 to 1. Token counts are the server's, of one prompt.

    cut: answers that ended because they had all the tokens that the task allows. ``sala-sglang eval`` keeps neither.
    """

    score: float
    answered: int
    prompt_tokens_min: int | str = ""
    prompt_tokens_max: int | str = ""
    cut: int | str = ""
