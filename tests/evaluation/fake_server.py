"""A server that answers in milliseconds, with SGLang's checks of lengths and SGLang's words."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from transformers import AutoTokenizer

MODEL = "fake"


class FakeServer:
    """A server on a free port, as a context manager.

    tokenizer: directory. context: tokens of a prompt and its answer. lists_context: says so with its models. answers:
    how many it gives before it ``leaves``: "closes" (each connection without an answer), "waits" (until the end), or
    a status code. answer_tokens: length of every answer, of those that are asked for.
    """

    def __init__(
        self,
        tokenizer: Path,
        context: int,
        lists_context: bool = False,
        answers: int | None = None,
        leaves: str | int = "closes",
        answer_tokens: int | None = None,
    ):
        self.tokenizer, self.path = AutoTokenizer.from_pretrained(tokenizer), str(tokenizer)
        self.context, self.lists_context = context, lists_context
        self.answers, self.leaves, self.answer_tokens = answers, leaves, answer_tokens
        self.prompts: list[int] = []  # tokens of each that arrived
        self.served, self.at_once, self.most_at_once = 0, 0, 0
        self.lock, self.end = threading.Lock(), threading.Event()

    def __enter__(self) -> "FakeServer":
        handler = type("Handler", (_Handler,), {"fake": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.base_url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,)).start()
        return self

    def __exit__(self, *exception) -> None:
        self.end.set()
        self.http.shutdown()
        self.http.server_close()

    def answer(self, body: dict) -> tuple[int, dict]:
        ids = self.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=False)
        prompt, new = len(ids), body["max_tokens"]
        with self.lock:
            self.prompts.append(prompt)
        if prompt + new > self.context:
            message = (
                f"Requested token count exceeds the model's maximum context length of {self.context} tokens. You "
                f"requested a total of {prompt + new} tokens: {prompt} tokens from the input messages and {new} tokens"
            )
            return 400, {"object": "error", "message": message, "type": "BadRequestError", "param": None, "code": 400}
        message = body["messages"][0]["content"]
        numbers = re.findall(r"\d{4}", message)
        named = numbers[int(hashlib.sha256(message.encode()).hexdigest(), 16) % len(numbers)]
        tokens = min(new, self.context - 2 - prompt, self.answer_tokens or new)  # the scheduler keeps two back
        choice = {"index": 0, "message": {"role": "assistant", "content": named}, "finish_reason": "length"}
        usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
        about = {"id": "1", "object": "chat.completion", "created": 0, "model": MODEL}
        return 200, about | {"choices": [choice], "usage": usage}


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/model_info":
            self._send(200, {"tokenizer_path": self.fake.path})
        else:
            context = {"max_model_len": self.fake.context} if self.fake.lists_context else {}
            self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model"} | context]})

    def do_POST(self) -> None:
        fake = self.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with fake.lock:
            fake.at_once += 1
            fake.most_at_once = max(fake.most_at_once, fake.at_once)
            here = fake.answers is None or fake.served < fake.answers
            fake.served += here
        if here:
            self._send(*fake.answer(body))
        elif fake.leaves == "waits":
            fake.end.wait()
        elif fake.leaves == "closes":
            self.close_connection = True
        else:
            self._send(int(fake.leaves), {"object": "error", "message": "not now", "code": fake.leaves})
        with fake.lock:
            fake.at_once -= 1

    def _send(self, status: int, body: dict) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
