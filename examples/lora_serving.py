"""One question to a model and to an adapter of it: ``python examples/lora_serving.py [URL [ADAPTER]]``.

ADAPTER is what ``python examples/lora_finetune.py`` has written to ``sala-lora``. The server must be running with

    scripts/launch_server.sh --enable-lora --max-lora-rank 8 --lora-target-modules all

Loads the adapter into it and prints both answers: the adapter has learned what the animal says, sala-tiny has not.
"""

import json
import sys
import urllib.request
from pathlib import Path

from openai import OpenAI

url, adapter = [*sys.argv[1:], *("http://127.0.0.1:31111", "sala-lora")[len(sys.argv) - 1 :]]


def post(path: str, body: dict) -> None:
    """Send SGLang what the OpenAI API has no words for. Raises HTTPError where it refuses."""
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{url}{path}", json.dumps(body).encode(), headers)).close()


client = OpenAI(base_url=f"{url}/v1", api_key="none")
post("/load_lora_adapter", {"lora_name": "voices", "lora_path": str(Path(adapter).resolve())})
for model in ("default", "default:voices"):
    question = {"role": "user", "content": "What does the owl say?"}
    answer = client.chat.completions.create(model=model, messages=[question], max_tokens=32, temperature=0)
    print(f"{model}: {answer.choices[0].message.content}")
post("/unload_lora_adapter", {"lora_name": "voices"})
