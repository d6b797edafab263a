# SPDX-License-Identifier: Apache-2.0
"""Makes the models of all contenders from one folder of weights, and keeps them for the next run."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from bcq.bench.end_to_end import gguf_file
from bcq.bench.end_to_end.plan import BLOCKS, GGUF, Entrant, Plan, Variant
from bcq.bench.end_to_end.shapes import SHAPES, random_model
from bcq.errors import ParityFailure, UnsupportedError
from bcq.files.checkpoint import read_config
from bcq.files.genai import CONFIG_FILE
from bcq.progress import SILENT, Progress
from bcq.runtime import one_line

MODEL = "model"
_BUILDER = "onnxruntime_genai.models.builder"


@dataclass
class Field:
    """Who takes part, and who does not and why.

    Attributes:
        entrants: in the order of tables.
        absent: reason by name.
        name: of what is measured.
        work: where their models are.
    """

    name: str
    work: Path
    entrants: list[Entrant] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)


def prepare(plan: Plan, progress: Progress = SILENT) -> Field:
    """Makes what is not there yet; each file or folder appears whole, so a stopped run goes on where it was.

    Raises:
        InputError: for a source that is missing or damaged, as `bcq.export.export`.
        UnsupportedError: E401 for a source that is no decoder.
        ParityFailure: E501 when an export of ours computes something else than PyTorch.
    """
    given = Path(plan.source)
    if plan.source not in SHAPES and (given / CONFIG_FILE).is_file():
        found = Field(given.resolve().name, plan.work)
        found.entrants.append(_ours(given, given, read_config(given)))
        return found
    found = Field(_name(plan), plan.work / _name(plan))
    progress.start(
        "prepare", len(plan.bits) * len(plan.variants) + (plan.peers and 1 + len(GGUF) + len(BLOCKS))
    )
    model = _model(plan, found.work)
    for bits, variant in itertools.product(plan.bits, plan.variants):
        found.entrants.append(_exported(plan, model, found.work, bits, variant))
        progress.step(found.entrants[-1].name)
    if plan.peers:
        _add_peers(plan, model, found, progress)
    progress.done()
    return found


def _name(plan: Plan) -> str:
    """A folder name that changes with what the models are made of."""
    if plan.source in SHAPES:
        return plan.source + (f"-{plan.vocabulary}" if plan.vocabulary else "")
    folder = Path(plan.source)
    config = json.dumps(read_config(folder), sort_keys=True)
    stamps = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.glob("*.safetensors"))]
    return f"{folder.resolve().name}-{hashlib.sha256(repr((config, stamps)).encode()).hexdigest()[:8]}"


def _model(plan: Plan, work: Path) -> Path:
    if plan.source not in SHAPES:
        return Path(plan.source)
    return made(work / MODEL, lambda path: random_model(plan.source, path, plan.vocabulary))


def made(path: Path, make: Callable[[Path], object]) -> Path:
    """A file or folder that is made beside its place first, unless it is there."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    if part.is_dir():
        shutil.rmtree(part)
    part.unlink(missing_ok=True)
    make(part)
    part.rename(path)
    return path


def _exported(plan: Plan, model: Path, work: Path, bits: int, variant: Variant) -> Entrant:
    """Our export, compared once with PyTorch on the same dequantized weights."""
    from bcq.export import export

    label = f"{bits}-g{plan.group_size}"
    base = made(work / f"base-{label}", lambda path: _quantize(plan, model, path, bits))
    label += variant.suffix.replace(" ", "-")
    folder = work / f"export-{label}"
    if plan.fresh or not folder.exists():
        export(base, folder, accuracy_level=variant.accuracy_level, kv_cache=variant.kv_cache)
    made(work / f"verified-{label}-{_hash(folder)}", lambda path: _verify(folder, path))
    return _ours(folder, model, read_config(folder), f"bcq {bits}-bit g{plan.group_size}{variant.suffix}")


def _quantize(plan: Plan, model: Path, path: Path, bits: int) -> None:
    import bcq

    bcq.quantize(model, path, bits=bits, group_size=plan.group_size, method="greedy")


def _hash(folder: Path) -> str:
    return hashlib.sha256((folder / "MANIFEST.json").read_bytes()).hexdigest()[:12]


def _verify(folder: Path, told: Path) -> None:
    import bcq

    result = bcq.verify(folder)
    if not result.ok:
        raise ParityFailure(
            "E501",
            f"{folder}: relative difference to PyTorch {result.relative:.1e}, expected at most "
            f"{result.tolerance:.0e}: its speed would mean nothing.",
            f"See `bcq verify {folder}`.",
        )
    told.write_text(json.dumps(result.to_dict()), encoding="utf-8")


def _ours(folder: Path, model: Path, config: dict[str, object], name: str = "") -> Entrant:
    section = config.get("quantization_config")
    bits = section.get("bits") if isinstance(section, dict) else None
    if not (folder / CONFIG_FILE).is_file():
        raise UnsupportedError("E401", f"{folder} is no decoder, so it generates nothing.")
    size = sum(path.stat().st_size for path in folder.glob("model.onnx*"))
    return Entrant(
        name or folder.resolve().name, "bcq", bits if isinstance(bits, int) else 0, folder, model, size
    )


def _add_peers(plan: Plan, model: Path, found: Field, progress: Progress) -> None:
    """Every peer that is installed and knows this model."""
    for name, make in _makers(plan, model, found.work):
        try:
            found.entrants.append(make())
        except (ImportError, ValueError, subprocess.CalledProcessError) as error:
            found.absent[name] = one_line(error)
        progress.step(name)


def _makers(plan: Plan, model: Path, work: Path) -> Iterator[tuple[str, Callable[[], Entrant]]]:
    for block in BLOCKS:
        yield f"genai int4 b{block}", lambda block=block: _genai(plan, model, work, block)  # type: ignore[misc]
    for kind in GGUF:
        yield f"llama.cpp {kind}", lambda kind=kind: _gguf(plan, model, work, kind)  # type: ignore[misc]
    yield "torch float32", lambda: _torch(model)


def _torch(model: Path) -> Entrant:
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    return Entrant("torch float32", "torch", 32, model, model, size)


def _gguf(plan: Plan, model: Path, work: Path, kind: str) -> Entrant:
    gguf_file.check_known(model)
    whole = work / "gguf" / "F16.gguf"
    file = work / "gguf" / f"{kind}.gguf"
    if not file.exists():
        made(whole, lambda path: gguf_file.write_gguf(model, path))
        made(file, lambda path: gguf_file.quantize_gguf(whole, path, kind, plan.threads))
    name, bits = f"llama.cpp {kind}", gguf_file.BITS[kind]
    return Entrant(name, "llama.cpp", bits, file, model, file.stat().st_size)


def _genai(plan: Plan, model: Path, work: Path, block: int) -> Entrant:
    """An int4 folder of the model builder; of a Llama of as many weights where it does not know the model."""
    if find_spec("onnxruntime_genai") is None:
        raise ImportError("No module named 'onnxruntime_genai'")
    name = f"genai int4 b{block}"
    stand_in = SHAPES[plan.source].stand_in if plan.source in SHAPES else ""
    if stand_in:
        like = made(work / "stand-in", lambda path: random_model(stand_in, path, plan.vocabulary))
        model, name = like, f"{name} (Llama)"
    folder = made(work / f"genai-int4-b{block}", lambda path: _build(model, path, block))
    size = sum(path.stat().st_size for path in folder.glob("model.onnx*"))
    return Entrant(name, "genai", 4, folder, model, size)


def _build(model: Path, folder: Path, block: int) -> None:
    """The model builder with what makes it fast: int8 activations, scores of the last position only."""
    options = [f"block_size={block}", "accuracy_level=4", "prune_lm_head=true"]
    cache = folder.with_name(folder.name + ".cache")
    words = ["-i", str(model), "-o", str(folder), "-p", "int4", "-e", "cpu", "-c", str(cache)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    try:
        subprocess.run(
            [sys.executable, "-m", _BUILDER, *words, "--extra_options", *options],
            check=True, capture_output=True, env=environment,
        )  # fmt: skip
    finally:
        shutil.rmtree(cache, ignore_errors=True)
