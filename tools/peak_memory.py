# SPDX-License-Identifier: Apache-2.0
"""Peak memory of quantizing and exporting a model of over 2 GB, above what the imports take.

``python tools/peak_memory.py`` writes a GPT-2 with seeded random weights in shards, quantizes and exports it
in a process each, and exits with 1 when one takes more than three times the largest tensor plus 200 MB.
With ``--killed`` it quantizes, kills a second run after half of the time, resumes that one, and exits
with 1 when the bytes differ.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MB = 1_000_000
SLACK = 200 * MB
TIMES_LARGEST = 3
SIZES = {"n_embd": 2048, "n_layer": 9, "n_head": 16, "n_positions": 1024, "vocab_size": 50257}
SHARD_BYTES = 1_000 * MB


def shapes(
    n_embd: int, n_layer: int, n_positions: int, vocab_size: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a GPT-2 checkpoint."""
    yield "transformer.wte.weight", (vocab_size, n_embd)
    yield "transformer.wpe.weight", (n_positions, n_embd)
    for layer in range(n_layer):
        prefix = f"transformer.h.{layer}."
        for name, inputs, outputs in (
            ("attn.c_attn", n_embd, 3 * n_embd), ("attn.c_proj", n_embd, n_embd),
            ("mlp.c_fc", n_embd, 4 * n_embd), ("mlp.c_proj", 4 * n_embd, n_embd),
        ):  # fmt: skip
            yield f"{prefix}{name}.weight", (inputs, outputs)
            yield f"{prefix}{name}.bias", (outputs,)
        for norm in ("ln_1", "ln_2"):
            yield f"{prefix}{norm}.weight", (n_embd,)
            yield f"{prefix}{norm}.bias", (n_embd,)
    yield "transformer.ln_f.weight", (n_embd,)
    yield "transformer.ln_f.bias", (n_embd,)


def write_model(folder: Path, sizes: dict[str, int]) -> tuple[int, int]:
    """Writes the checkpoint tensor by tensor; its bytes, and those of its largest tensor."""
    from bcq.files.checkpoint import INDEX
    from bcq.files.safetensors_write import SafetensorsWriter, TensorSpec

    folder.mkdir()
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **sizes}
    (folder / "config.json").write_text(json.dumps(config))
    specs = {name: TensorSpec("F32", shape) for name, shape in shapes(*(sizes[k] for k in _SHAPE_SIZES))}
    shards: list[dict[str, TensorSpec]] = [{}]
    for name, spec in specs.items():
        if sum(each.nbytes for each in shards[-1].values()) + spec.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
        shards[-1][name] = spec
    random, weight_map = np.random.default_rng(0), {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        with SafetensorsWriter(folder / file, shard, {"format": "pt"}) as writer:
            for name, spec in shard.items():
                weight_map[name] = file
                values = random.standard_normal(spec.shape, np.float32)
                values *= np.float32(0.02)
                writer.write(name, values.data.cast("B"))
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return sum(spec.nbytes for spec in specs.values()), max(spec.nbytes for spec in specs.values())


_SHAPE_SIZES = ("n_embd", "n_layer", "n_positions", "vocab_size")


def child(verb: str, source: str, output: str, method: str) -> None:
    """One run; prints what the imports and what the run took."""
    from bcq.export import export
    from bcq.matrices.plan import QuantizeOptions
    from bcq.quantize import quantize

    if verb == "import":
        import onnx_ir  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
        import torch
        import transformers

        torch.onnx  # noqa: B018 - lazily imported parts count as imports
        transformers.GPT2LMHeadModel  # noqa: B018
    began = time.monotonic()
    options = QuantizeOptions(bits=3, method=method) if method else None
    if verb in ("quantize", "resume"):
        quantize(Path(source), Path(output), options, resume=verb == "resume")
    elif verb == "export":
        export(Path(source), Path(output), options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak, "seconds": round(time.monotonic() - began, 1)}))


def measured(verb: str, source: Path, output: Path, method: str) -> dict[str, float]:
    """Peak resident bytes and seconds of a run in a process of its own."""
    command = _command(verb, source, output, method)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _command(verb: str, source: Path, output: Path, method: str) -> list[str]:
    return [sys.executable, __file__, "--child", verb, str(source), str(output), method]


def main() -> int:
    """Prints one line a run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", nargs=4)
    parser.add_argument("--method", default="multistart", help="solver (default: that of bcq quantize)")
    parser.add_argument("--folder", type=Path, help="where the model is made (default: a temporary folder)")
    parser.add_argument("--layers", type=int, default=SIZES["n_layer"])
    parser.add_argument("--killed", action="store_true", help="kill, resume and compare bytes instead")
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run = resumed if arguments.killed else compare
        return run(Path(folder), {**SIZES, "n_layer": arguments.layers}, arguments.method)


def resumed(folder: Path, sizes: dict[str, int], method: str) -> int:
    """Kills the second of two equal runs in the middle, resumes it and compares what both have made."""
    from bcq.files.manifest import file_hash

    total, largest = write_model(folder / "model", sizes)
    imports = measured("import", folder, folder, method)["peak"]
    whole = measured("quantize", folder / "model", folder / "whole", method)
    process = subprocess.Popen(_command("quantize", folder / "model", folder / "half", method))
    try:
        process.wait(whole["seconds"] / 2)
    except subprocess.TimeoutExpired:
        process.kill()
    if process.wait() != -signal.SIGKILL or (folder / "half").exists():
        print("the run was over before it could be killed, or left an output")
        return 1
    rest = measured("resume", folder / "model", folder / "half", method)
    files = {path.name: file_hash(path) for path in sorted((folder / "whole").iterdir())}
    same = files == {path.name: file_hash(path) for path in sorted((folder / "half").iterdir())}
    print(
        f"checkpoint {total / MB:,.0f} MB: quantized in {whole['seconds']:.0f} s; killed after half of that, "
        f"resumed in {rest['seconds']:.0f} s, {(rest['peak'] - imports) / MB:,.0f} MB above imports: "
        f"{'the same bytes' if same else 'OTHER BYTES'} in {len(files)} files"
    )
    allowed = TIMES_LARGEST * largest + SLACK
    return 0 if same and rest["peak"] - imports <= allowed else 1


def compare(folder: Path, sizes: dict[str, int], method: str) -> int:
    """All runs on one model."""
    total, largest = write_model(folder / "model", sizes)
    allowed = TIMES_LARGEST * largest + SLACK
    imports = measured("import", folder, folder, method)["peak"]
    print(
        f"checkpoint {total / MB:,.0f} MB, largest tensor {largest / MB:,.0f} MB, "
        f"imports {imports / MB:,.0f} MB"
    )
    peaks = []
    runs = (
        ("quantize", "model", "base", method),
        ("export", "base", "out", ""),
        ("export", "model", "both", method),
    )
    for verb, source, output, how in runs:
        found = measured(verb, folder / source, folder / output, how)
        above = found["peak"] - imports
        peaks.append(above)
        print(
            f"{verb} {source:6} {above / MB:8,.0f} MB above imports (allowed {allowed / MB:,.0f}), "
            f"{found['seconds']:.0f} s",
            flush=True,
        )
    each = ", ".join(
        f"{verb} {source} {peak / MB:,.0f} MB" for (verb, source, *_), peak in zip(runs, peaks, strict=True)
    )
    print(f"{each}; {allowed / MB:,.0f} MB allowed, checkpoint {total / MB:,.0f} MB")
    return 1 if max(peaks) > allowed else 0


if __name__ == "__main__":
    sys.exit(main())
