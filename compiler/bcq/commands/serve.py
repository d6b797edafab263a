# SPDX-License-Identifier: Apache-2.0
"""``bcq serve``: an endpoint as OpenAI's over an exported decoder."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from bcq.commands.options import add_verb, warn
from bcq.errors import ResourceError

if TYPE_CHECKING:
    from bcq.commands.options import Subparsers

KEY = "BCQ_API_KEY"
EXAMPLES = """\
  bcq serve out
  bcq serve out --port 0 --name my-model --max-active 8 --json
  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
    -d '{"model": "out", "prompt": "The film was", "max_tokens": 20, "temperature": 0}'
paths: /v1/completions, /v1/chat/completions, /v1/models, /health; adapters are models by their names"""


def add_parser(subparsers: Subparsers) -> None:
    """Declares the verb."""
    verb = add_verb(subparsers, "serve", "answer requests as OpenAI's endpoint does", EXAMPLES)
    add = verb.add_argument
    add("folder", type=Path, metavar="FOLDER", help="what `bcq export` wrote")
    add("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine only)")
    add("--port", type=int, default=8000, help="port, 0 for any that is free (default 8000)")
    add("--name", help="name of the model (default: the folder's)")
    add("--template", type=Path, metavar="FILE", help="chat template in place of the model's")
    add("--bits", type=int, metavar="Q", help="precision of an export that serves several")
    add("--api-key", metavar="KEY", help=f"asked for in each request (better: the variable {KEY})")
    limits = verb.add_argument_group("limits").add_argument
    limits("--max-active", type=int, default=16, metavar="N", help="answers that advance together (16)")
    limits("--max-waiting", type=int, default=256, metavar="N", help="answers that wait; then 429 (256)")
    limits("--max-new-tokens", type=int, default=1024, metavar="N", help="tokens an answer (1024)")
    limits("--max-prompt-tokens", type=int, default=0, metavar="N", help="tokens a prompt (0: the model's)")
    limits("--max-body", type=int, default=2**20, metavar="BYTES", help="bytes a request (1048576)")
    limits("--grace", type=int, default=10, metavar="S", help="seconds answers have to end on SIGTERM (10)")
    verb.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or Ctrl-C."""
    from bcq.generation.model import load
    from bcq.generation.template import PlainForm, open_template
    from bcq.serve.limits import Limits

    try:
        from bcq.serve.server import serve
    except ModuleNotFoundError as fault:
        raise ResourceError(
            "E603", f"the package '{fault.name}' is not installed.", "Run `pip install 'onnx-bcq[serve]'`."
        ) from fault
    from bcq.serve.engine import Engine

    limits = Limits(
        active=arguments.max_active,
        waiting=arguments.max_waiting,
        new_tokens=arguments.max_new_tokens,
        prompt_tokens=arguments.max_prompt_tokens,
        body=arguments.max_body,
        seconds=arguments.grace,
    )
    template = open_template(arguments.folder, arguments.template)
    if isinstance(template, PlainForm):
        warn(arguments, "the model has no chat template; chats are written as 'User: ...', 'Assistant: ...'")
    model = load(arguments.folder, bits=arguments.bits)
    name = arguments.name or arguments.folder.resolve().name
    engine = Engine(model, name, template, limits)

    def tell(address: str) -> None:
        data = {"address": address, "models": engine.names}
        line = f"listening at {address}, models: {', '.join(engine.names)}"
        print(json.dumps(data) if arguments.json else line, file=arguments.out, flush=True)

    serve(engine, limits, arguments.host, arguments.port, arguments.api_key or os.environ.get(KEY), tell)
    return 0
