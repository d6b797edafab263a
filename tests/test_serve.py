# SPDX-License-Identifier: Apache-2.0
"""`bcq serve` as a program: a hundred streams at once, clients that leave, signals that end it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="exporting needs the packages for compiling")
pytest.importorskip("uvicorn", reason="serving needs the extra [serve]")

import bcq
from bcq.cli import main
from bcq.generation.model import Model, load

STREAMS, TOKENS = 100, 12
WORDS = ("The people of the", "We must", "A new nation and", "In the city", "Our government is one of")


@dataclass
class Served:
    """A server that runs: its process and where it listens."""

    process: subprocess.Popen[str]
    port: int

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return json.load(answer)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@pytest.fixture(scope="module")
def model(demo_export: Path) -> Model:
    return load(demo_export)


@contextmanager
def serving(demo_export: Path, *words: str) -> Iterator[Served]:
    command = [sys.executable, "-m", "bcq.cli", "serve", str(demo_export), "--port", "0", "--json", *words]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout
            told = process.stdout.readline()
            assert told, process.communicate()[1]
            yield Served(process, int(json.loads(told)["address"].rpartition(":")[2]))
        finally:
            process.kill()


def request(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


async def stream(port: int, prompt: str, most: int) -> tuple[int, str, dict[str, Any] | None, bool]:
    """Status, text, counts and whether the stream came to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = {"model": "demo", "prompt": prompt, "max_tokens": most, "temperature": 0, "stream": True}
    writer.write(request("/v1/completions", {**body, "stream_options": {"include_usage": True}}))
    await writer.drain()
    whole = (await reader.read()).decode()
    writer.close()
    status = int(whole.split(" ", 2)[1])
    data = [line.removeprefix("data: ") for line in whole.splitlines() if line.startswith("data: ")]
    pieces = [json.loads(line) for line in data if line != "[DONE]"]
    text = "".join(one["text"] for piece in pieces for one in piece.get("choices", []))
    counts = next((piece["usage"] for piece in pieces if piece.get("usage")), None)
    return status, text, counts, data[-1:] == ["[DONE]"]


def test_a_hundred_streams_at_once_lose_no_token_and_the_server_ends_cleanly(
    demo_export: Path, model: Model
) -> None:
    prompts = [f"{WORDS[number % len(WORDS)]} {number}" for number in range(STREAMS)]

    async def everyone(port: int) -> list[tuple[int, str, dict[str, Any] | None, bool]]:
        return await asyncio.gather(*(stream(port, prompt, TOKENS) for prompt in prompts))

    with serving(demo_export) as served:
        answers = asyncio.run(everyone(served.port))
        assert served.get("/health") == {"status": "ok", "active": 0, "waiting": 0}
        assert served.end() == (0, served_warning())
    for prompt, (status, text, counts, whole) in zip(prompts, answers, strict=True):
        tokens = model.generate(model.encode(prompt), TOKENS)
        assert (status, whole) == (200, True)
        assert text == model.generate(prompt, TOKENS)
        assert counts is not None
        assert counts["completion_tokens"] == len(tokens)


def served_warning() -> str:
    return "warning: the model has no chat template; chats are written as 'User: ...', 'Assistant: ...'\n"


def test_a_client_that_leaves_ends_its_answer(demo_export: Path) -> None:
    with serving(demo_export, "--max-active", "1", "--quiet") as served:
        for streams in (True, False):
            body = {"model": "demo", "prompt": "The", "max_tokens": 240, "temperature": 0, "stream": streams}
            many = {**body, "prompt": ["The"] * 16}  # thousands of tokens: seconds, if nobody stopped them
            with socket.create_connection(("127.0.0.1", served.port)) as connection:
                connection.sendall(request("/v1/completions", many))
                while sum(served.get("/health")[kind] for kind in ("active", "waiting")) == 0:
                    time.sleep(0.01)
            began = time.monotonic()
            while sum(served.get("/health")[kind] for kind in ("active", "waiting")):
                assert time.monotonic() - began < 5, "the answers went on"
                time.sleep(0.01)
        assert served.end(signal.SIGINT) == (0, "")


@pytest.mark.parametrize(("grace", "whole"), [("30", True), ("0", False)])
def test_running_streams_have_their_time_to_end_and_are_told_when_it_is_over(
    demo_export: Path, model: Model, grace: str, whole: bool
) -> None:
    async def ended(served: Served) -> tuple[int, str, dict[str, Any] | None, bool]:
        answer = asyncio.create_task(stream(served.port, "The people", 200))
        while not await asyncio.to_thread(lambda: served.get("/health")["active"]):
            await asyncio.sleep(0.01)
        served.process.send_signal(signal.SIGTERM)
        return await answer

    with serving(demo_export, "--grace", grace, "--quiet") as served:
        status, text, _, done = asyncio.run(ended(served))
        assert served.process.wait(timeout=60) == 0
    expected = model.generate("The people", 200)
    assert (status, done) == (200, whole)
    assert text == expected if whole else expected.startswith(text)


def test_each_adapter_is_a_model_of_its_name(tmp_path: Path) -> None:
    from tiny_adapters import task, tiny_base
    from tiny_tokenizer import save_tokenizer

    base = tiny_base(tmp_path, "llama")
    for seed, name in enumerate("ab", 1):
        task(base, name, seed).save(tmp_path / "tasks" / name)
    bcq.export(base, tmp_path / "out", adapters=[tmp_path / "tasks" / name for name in "ab"])
    save_tokenizer(tmp_path / "out")
    alone = load(tmp_path / "out")
    with serving(tmp_path / "out", "--quiet") as served:
        assert [one["id"] for one in served.get("/v1/models")["data"]] == ["out", "a", "b"]
        texts = {}
        for name in ("out", "a", "b"):
            body = {"model": name, "prompt": [3, 4, 5], "max_tokens": 6, "temperature": 0}
            call = urllib.request.Request(
                f"http://127.0.0.1:{served.port}/v1/completions",
                json.dumps(body).encode(), {"Content-Type": "application/json"},
            )  # fmt: skip
            with urllib.request.urlopen(call, timeout=30) as answer:
                texts[name] = json.load(answer)["choices"][0]["text"]
            task_name = None if name == "out" else name
            assert texts[name].split() == alone.decode(alone.generate([3, 4, 5], 6, task_name)).split()
        assert len(set(texts.values())) == 3


def test_a_port_that_is_taken_is_said(demo_export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", str(demo_export), "--port", str(taken.getsockname()[1])]) == 6
    assert "error[E605]: cannot listen at 127.0.0.1" in capsys.readouterr().err
    assert main(["serve", str(demo_export), "--port", "0", "--max-active", "0"]) == 2


def test_serving_imports_neither_torch_nor_transformers_nor_onnx() -> None:
    program = (
        "import sys, bcq.commands.serve, bcq.serve.server, bcq.serve.engine, bcq.generation.batch;"
        "print(sorted({'torch', 'transformers', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
