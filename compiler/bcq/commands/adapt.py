# SPDX-License-Identifier: Apache-2.0
"""``bcq adapt``: a LoRA checkpoint in, an adapter of a quantized base out, if enough of it is retained."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcq.commands.options import add_verb, emit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bcq.adapters.adapter import Adapter
    from bcq.commands.options import Subparsers
    from bcq.files.base import QuantizedBase
    from bcq.lora.adapt import Retained

EXAMPLES = """\
  bcq adapt base --lora my-lora -o adapters/e2e
  bcq adapt base --lora my-lora -o adapters/e2e --text heldout.txt
  bcq adapt base --lora my-lora -o adapters/e2e --parts alpha_1 --allow-loss
  bcq quantize MODEL --lora my-lora -o base    # where too much is lost: new codes for the merged model"""
_WORST = 5  # matrices that the summary names
WINDOWS = 20  # of a held-out text


def add_parser(subparsers: Subparsers) -> None:
    """Declares the verb."""
    verb = add_verb(subparsers, "adapt", "turn a LoRA checkpoint into an adapter of a base", EXAMPLES)
    verb.add_argument("base", type=Path, metavar="BASE", help="what `bcq quantize` wrote")
    verb.add_argument("--lora", type=Path, required=True, metavar="DIR", help="PEFT folder with safetensors")
    verb.add_argument(
        "-o", "--output", type=Path, required=True, help="folder to write; its name is the task's"
    )
    verb.add_argument(
        "--parts",
        choices=("all", "alpha_1"),
        default="all",
        help="factors that are solved anew: all and the offset (default), or only the first",
    )
    verb.add_argument(
        "--least",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="share of the LoRA's change that must be retained (default 0.5)",
    )
    verb.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="also measure the perplexity on a held-out text, of a decoder",
    )
    verb.add_argument("--allow-loss", action="store_true", help="write it however little is retained")
    verb.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Solves, tells what was lost, writes."""
    from bcq.files.base import QuantizedBase
    from bcq.lora.adapt import adapt, check_retained, rows_of, total_retained
    from bcq.lora.checkpoint import Lora

    base, lora = QuantizedBase.open(arguments.base), Lora.open(arguments.lora)
    adapter, found = adapt(base, lora, arguments.output.resolve().name, arguments.parts)
    if not arguments.allow_loss:
        check_retained(found, arguments.least)
    adapter.save(arguments.output)
    data: dict[str, Any] = {
        "output": str(arguments.output),
        "base_hash": adapter.base_hash,
        "numbers": adapter.count,
        "bytes": adapter.nbytes,
        "retained": total_retained(found),
        "matrices": rows_of(found),
    }
    text = _text(adapter, found)
    if arguments.text is not None:
        data["perplexity"] = held_out(base, adapter, arguments.text)
        text += "\nperplexity: base {base:.3f}, adapter {adapter:.3f}".format(**data["perplexity"])
    emit(arguments, data, text, result=False)
    return 0


def held_out(base: QuantizedBase, adapter: Adapter, file: Path) -> dict[str, float]:
    """Perplexity of the base and of the adapter on a text; the model is exported for it and removed again."""
    import tempfile

    from bcq.evaluate import perplexity, read_text
    from bcq.export import export

    text = read_text(file)
    with tempfile.TemporaryDirectory(prefix="bcq-adapt-") as temporary:
        output = Path(temporary) / "out"
        export(base, output, adapters=[adapter], allow_partial=True)
        tasks = {"base": None, "adapter": adapter}
        return {
            name: perplexity(output, text, limit=WINDOWS, adapter=task).perplexity
            for name, task in tasks.items()
        }


def _text(adapter: Adapter, found: Sequence[Retained]) -> str:
    from bcq.lora.adapt import total_retained

    lines = [
        f"adapter '{adapter.name}': {adapter.count:,} numbers, {adapter.nbytes / 1000:,.1f} kB",
        f"retained: {total_retained(found):.1%} of the LoRA's change of {len(found)} packed matrices",
    ]
    worst = sorted(found, key=lambda one: one.retained)[:_WORST]
    lines += [f"  {one.retained:6.1%} of {one.name} (error {one.error:.2f})" for one in worst]
    return "\\n".join(lines)
