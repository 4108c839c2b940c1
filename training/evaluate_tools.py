"""How often a checkpoint calls the right tools, and answers from their results, by what is asked and how it thinks.

``python -m training.evaluate_tools --models DIR DIR --exchanges 60 --output FILE.csv`` asks what
``training/tool_conversations.py`` makes, of seeds that no run trained on. A turn is right where each of its tokens, its
end included, is the likeliest one after those before: this is what greedy decoding writes. Turns before it are the
right ones.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sala_sglang.hf import MiniCPMSALAForCausalLM
from training.saved_runs import write_rows
from training.tool_conversations import TOOLS, Exchange, choose_tools, exchange, written_call

THINKING = {"unset": None, "on": True, "off": False}
END = "<|im_end|>"


def kind(asked: Exchange) -> str:
    """What an exchange is about."""
    if not asked.calls:
        return "no tool"
    name, arguments = asked.calls[0]
    if name == "get_code":
        return "one code" if len(asked.calls) == 1 else "two codes, parallel calls"
    if name == "fill_box":
        return "a number into a box"
    special = set(arguments["text"]) & set("<&\n")
    return "a note with " + {"<": "<", "&": "&", "\n": "a line break"}[special.pop()] if special else "a note"


def turns(
    tokenizer: PreTrainedTokenizerBase, names: list[str], messages: list[dict], asked: Exchange, thinking: bool | None
) -> Iterator[tuple[str, str, str]]:
    """Name, prompt and expected text of each of the assistant's turns, by the checkpoint's own template."""
    tools = [TOOLS[name] for name in names]
    messages = [*messages, {"role": "user", "content": asked.question}]

    def prompt() -> str:
        choice = {} if thinking is None else {"enable_thinking": thinking}
        return tokenizer.apply_chat_template(messages, tools, tokenize=False, add_generation_prompt=True, **choice)

    def thought(text: str) -> str:
        return f"{text}\n</think>\n\n" if thinking else ""

    if asked.calls:
        calls = "\n".join(written_call(name, arguments) for name, arguments in asked.calls)
        yield "call", prompt(), thought(f"I call {asked.calls[0][0]}.") + calls + END
        written = [{"function": {"name": name, "arguments": arguments}} for name, arguments in asked.calls]
        messages.append({"role": "assistant", "content": "", "tool_calls": written})
        messages += [{"role": "tool", "content": result} for result in asked.results]
    text = "I have the result." if asked.calls else "I need no tool."
    yield "answer", prompt(), thought(text) + asked.answer + END


@torch.no_grad()
def margin(model: MiniCPMSALAForCausalLM, prompt: list[int], expected: list[int]) -> float:
    """Least difference of an expected token's logit and that of the best other one; negative: greedy writes others."""
    inputs = torch.tensor([prompt + expected], device=model.device)
    logits = model(inputs, use_cache=False, logits_to_keep=len(expected) + 1).logits[0, :-1]
    at = torch.tensor(expected, device=model.device)[:, None]
    wanted = logits.gather(1, at)
    others = logits.scatter(1, at, -torch.inf).amax(1, keepdim=True)
    return float((wanted - others).min())


def measure(model: MiniCPMSALAForCausalLM, tokenizer: PreTrainedTokenizerBase, exchanges: int, seed: int) -> list[dict]:
    """Rows of ``exchanges`` exchanges with each choice of thinking.

    right: how many of the turns. least_margin_nats: the least ``margin`` of these, empty where there is none.
    """
    margins: dict[tuple[str, str, str], list[float]] = {}
    for thinking, choice in THINKING.items():
        for number in range(exchanges):
            rng = Random(f"evaluation of tools {seed} {number}")
            names, messages = choose_tools(rng)
            asked = exchange(rng, names)
            for turn, prompt, expected in turns(tokenizer, names, messages, asked, choice):
                ids = (tokenizer.encode(text, add_special_tokens=False) for text in (prompt, expected))
                margins.setdefault((thinking, kind(asked), turn), []).append(margin(model, *ids))
    rows = []
    for (thinking, about, turn), found in sorted(margins.items()):
        right = [one for one in found if one > 0]
        row: dict = {"thinking": thinking, "asked": about, "turn": turn, "turns": len(found), "right": len(right)}
        rows.append(row | {"least_margin_nats": round(min(right), 3) if right else ""})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="named in the rows by their last folder")
    parser.add_argument("--exchanges", type=int, default=60, help="with each choice of thinking")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True, help="CSV file")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = {
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "none",
        "torch": torch.__version__.split("+")[0],
        "dtype": "float32",
    }
    rows = []
    for path in options.models:
        model = MiniCPMSALAForCausalLM.from_pretrained(path, dtype=torch.float32).to(device).eval()
        for one in measure(model, AutoTokenizer.from_pretrained(path), options.exchanges, options.seed):
            print(path.name, one, flush=True)
            rows.append({"model": path.name} | one | where)
    write_rows(options.output, rows)


if __name__ == "__main__":
    main()
