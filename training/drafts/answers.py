"""Let the served model answer prompts: ``python -m training.drafts.answers --model DIR --prompts FILE --out FILE``.

PROMPTS is a JSONL file of ``{"messages": [...]}`` as in the OpenAI API: every user's turn is answered in its order, and
the assistant's turns of the file are left out, because a draft model must learn what the model says itself. An engine
runs in this program, or ``--server URL`` names a running server with any arguments. An interrupted run goes on behind
the last complete line.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

Generate = Callable[[list[list[int]]], list[list[int]]]


class Dialogue:
    """A conversation while it is answered."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], max_tokens: int):
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.waiting = [message for message in messages if message["role"] != "assistant"]
        self.said: list[dict[str, Any]] = []
        self.sequences: list[dict[str, list]] = []

    def next_prompt(self) -> list[int] | None:
        """Tokens up to the next answer; None at the end, or where the conversation would be too long."""
        while self.waiting:
            self.said.append(self.waiting.pop(0))
            if self.said[-1]["role"] == "user":
                ids = self.tokenizer.apply_chat_template(self.said, add_generation_prompt=True, return_dict=False)
                return ids if len(ids) < self.max_tokens else None
        return None

    def take(self, prompt: list[int], answer: list[int]) -> None:
        """Go on with ``answer``; a template that rewrites earlier turns begins another sequence."""
        begin, end = len(prompt), len(prompt) + len(answer)
        text = self.tokenizer.decode(answer, skip_special_tokens=True)
        self.said.append({"role": "assistant", "content": text})
        if self.sequences and prompt[: len(self.sequences[-1]["ids"])] == self.sequences[-1]["ids"]:
            self.sequences[-1]["ids"] = prompt + answer
            self.sequences[-1]["answers"].append([begin, end])
        else:
            self.sequences.append({"ids": prompt + answer, "answers": [[begin, end]]})


def answer_all(dialogues: list[Dialogue], generate: Generate) -> None:
    """Answer turn by turn, all dialogues at once."""
    while dialogues:
        prompts = [(dialogue, dialogue.next_prompt()) for dialogue in dialogues]
        asked = [(dialogue, prompt) for dialogue, prompt in prompts if prompt is not None]
        if asked:
            for (dialogue, prompt), answer in zip(asked, generate([prompt for _, prompt in asked]), strict=True):
                dialogue.take(prompt, answer)
        dialogues = [dialogue for dialogue, _ in asked]


def complete_lines(path: Path) -> int:
    """Number of complete lines, after cutting off one that is not."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    path.write_bytes(content[: content.rfind(b"\n") + 1])
    return content.count(b"\n")


def engine(stack: ExitStack, options: argparse.Namespace) -> Generate:
    """An engine in this program, closed with ``stack``."""
    import sglang

    device = "cuda" if torch.cuda.is_available() else "cpu"
    opened = stack.enter_context(
        sglang.Engine(model_path=str(options.model), device=device, max_running_requests=options.batch)
    )
    parameters = {"temperature": options.temperature, "max_new_tokens": options.answer_tokens}
    return lambda prompts: [x["output_ids"] for x in opened.generate(input_ids=prompts, sampling_params=parameters)]


def server(url: str, options: argparse.Namespace) -> Generate:
    """A server's completions, which take and return token ids."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="none", timeout=None)

    def generate(prompts: list[list[int]]) -> list[list[int]]:
        done = client.completions.create(
            model="default",
            prompt=prompts,
            temperature=options.temperature,
            max_tokens=options.answer_tokens,
            extra_body={"return_token_ids": True},
        )
        return [choice.token_ids for choice in sorted(done.choices, key=lambda x: x.index)]  # type: ignore[attr-defined]

    return generate


def run(options: argparse.Namespace, generate: Generate) -> None:
    """Answer what ``options.out`` lacks, one line for each line of the prompts."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    done = complete_lines(options.out)
    lines = options.prompts.read_text().splitlines()[done:]
    for begin in range(0, len(lines), options.batch):
        batch = [json.loads(line)["messages"] for line in lines[begin : begin + options.batch]]
        dialogues = [Dialogue(tokenizer, messages, options.max_tokens) for messages in batch]
        answer_all(dialogues, generate)
        with options.out.open("a") as file:
            file.writelines(json.dumps({"sequences": dialogue.sequences}) + "\n" for dialogue in dialogues)
        print(f"{done + begin + len(batch)} of {done + len(lines)} prompts answered", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", type=Path, required=True, help="the checkpoint; with --server for its tokenizer alone"
    )
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL file of messages")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file of tokens")
    parser.add_argument("--server", help="address such as http://127.0.0.1:31111, instead of an engine")
    parser.add_argument("--batch", type=int, default=64, help="conversations at once")
    parser.add_argument("--max-tokens", type=int, default=8192, help="prompts that are longer stay without an answer")
    parser.add_argument("--answer-tokens", type=int, default=1024, help="of an answer at most")
    parser.add_argument("--temperature", type=float, default=0.0)
    options = parser.parse_args()
    with ExitStack() as stack:
        run(options, server(options.server, options) if options.server else engine(stack, options))


if __name__ == "__main__":  # the engine's processes import this file
    main()
