# SPDX-License-Identifier: Apache-2.0
"""The decoder without onnxruntime (runtime/native): logits and tokens of onnxruntime, refusals, memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("torch", reason="exporting needs the packages for compiling")

import bcq
from bcq import cli
from bcq.errors import BcqError, UnsupportedError, UsageError
from bcq.generation.model import Model, load
from bcq.native import model as native
from bcq.native.library import OpenDecoder
from bcq.runtime import library_path
from native_builds import NATIVE, RUNTIME, compiler, run_program
from other_cpu import other_cpu
from sdk_builds import EXAMPLES, ran
from tiny_models import save

ROOM = 160
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79]
# Both compute the same products with the same kernels, each within 1e-4 of its output (root mean square, see
# ops/README.md), so logits may be apart by a few times that once a difference of one rounding has grown.
NEAR = 6e-4
# Such a difference may also put a key or value on the next of the 127 steps up to the largest one.
NEAR_INT8 = 2e-2
SOURCES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gpt2": ({"n_positions": ROOM}, {"bits": 3, "group_size": 32}),
    "llama": (  # grouped heads, inputs that are no multiple of 32, factors of whole rows, offsets
        {"hidden_size": 96, "intermediate_size": 136, "max_position_embeddings": ROOM},
        {"bits": 4, "group_size": 0, "offset": True, "kv_cache": "int8"},
    ),
}
KINDS = ("gpt2", "llama", "llama with int8")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One export of each kind."""
    root = tmp_path_factory.mktemp("exports")
    for family, (sizes, options) in SOURCES.items():
        save(family, root / family, **sizes)
        bcq.export(root / family, root / f"{family} made", method="greedy", **options)
    changed(root / "llama made", root / "llama with floats", float_cache)
    return dict(
        zip(KINDS, (root / "gpt2 made", root / "llama with floats", root / "llama made"), strict=True)
    )


def float_cache(model: onnx.ModelProto) -> None:
    """The same model without what `--kv-cache int8` adds, to save an export."""
    for each in model.graph.node:
        if each.op_type == "GroupQueryAttention":
            del each.input[7:]
            kept = [attribute for attribute in each.attribute if "quant" not in attribute.name]
            del each.attribute[:]
            each.attribute.extend(a for a in kept if a.name != "kv_cache_bit_width")
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.INT8:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, exports: dict[str, Path]) -> Path:
    return exports[request.param]


def graph(folder: Path) -> Path:
    return folder / "model.onnx"


def told(model: Model, parts: Iterable[list[int]], room: int) -> list[Any]:
    """Logits of onnxruntime after each part of a text."""
    cache, task = model.decoder.cache(room), model.values(None)
    return [model.decoder.run(part, cache, task).copy() for part in parts]


def assert_logits_agree(folder: Path, parts: list[list[int]], near: float = NEAR, chunk: int = 0) -> None:
    room = sum(map(len, parts))
    opened = OpenDecoder(graph(folder), room, chunk=chunk)
    for part, expected in zip(parts, told(load(folder), parts, room), strict=True):
        assert np.abs(opened.step(part) - expected).max() <= near * np.abs(expected).max()


def test_logits_are_those_of_onnxruntime_for_a_prompt_and_each_token_after_it(folder: Path) -> None:
    text = np.random.default_rng(0).integers(2, 100, 40).tolist()
    near = NEAR_INT8 if folder.name == "llama made" else NEAR
    assert_logits_agree(folder, [text[:23], *([token] for token in text[23:])], near)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_prompt_that_is_longer_than_a_chunk_has_the_same_logits(
    exports: dict[str, Path], name: str
) -> None:
    text = np.random.default_rng(1).integers(2, 100, 150).tolist()  # two chunks of 64, and 22
    assert_logits_agree(exports[name], [text[:149], text[149:]])


def test_results_have_the_same_bits_for_any_number_of_threads_and_any_chunk(folder: Path) -> None:
    text = np.random.default_rng(2).integers(2, 100, 50).tolist()
    found = []
    for threads, chunk in ((1, 0), (2, 0), (3, 0), (1, 7), (2, 1)):
        opened = OpenDecoder(graph(folder), 64, threads, chunk)
        found.append([opened.step(part).copy() for part in (text, [5], [6])])
    for others in found[1:]:
        np.testing.assert_array_equal(others, found[0])


def test_tokens_are_those_of_the_session_greedily_and_sampled(folder: Path) -> None:
    session, alone = load(folder), native.load(folder)
    sampled: dict[str, Any] = {"temperature": 0.7, "seed": 5, "repetition_penalty": 1.2}
    # A step of int8 more or less moves probabilities by more than the difference between two draws.
    for options in ({},) if folder.name == "llama made" else ({}, sampled):
        assert alone.generate(PROMPT, 24, **options) == session.generate(PROMPT, 24, **options)


def test_what_is_kept_is_as_if_the_rest_had_never_been_seen(folder: Path) -> None:
    opened, fresh = OpenDecoder(graph(folder), 32), OpenDecoder(graph(folder), 32)
    opened.step([*PROMPT, 7, 8, 9])
    opened.keep(len(PROMPT))
    fresh.step(PROMPT)
    np.testing.assert_array_equal(opened.step([11]), fresh.step([11]))
    assert opened.seen() == len(PROMPT) + 1
    opened.keep(0)
    assert opened.seen() == 0


def test_memory_is_known_when_a_decoder_is_opened_and_does_not_grow(exports: dict[str, Path]) -> None:
    file = graph(exports["gpt2"])
    opened, short = OpenDecoder(file, ROOM), OpenDecoder(file, 16)
    before = bytes(opened.bytes())
    opened.step(list(range(100)))
    assert bytes(opened.bytes()) == before
    # 2 layers, keys and values, 64 floats a token
    assert opened.bytes().cache == 2 * 2 * ROOM * 64 * 4
    assert short.bytes().arena < opened.bytes().arena
    assert opened.bytes().mapped == sum(path.stat().st_size for path in file.parent.glob("model.onnx*"))


def test_a_text_that_is_too_long_is_refused_and_the_decoder_goes_on(exports: dict[str, Path]) -> None:
    opened = OpenDecoder(graph(exports["gpt2"]), 10)
    opened.step(PROMPT)
    with pytest.raises(UsageError, match="3 tokens after 8, but the decoder has room for 10"):
        opened.step([1, 2, 3])
    with pytest.raises(UsageError, match=r"node_embedding.*indices: got 100, expected -100 to 99"):
        opened.step([100])
    with pytest.raises(UsageError, match="count: got 0"):
        opened.step([])
    assert opened.seen() == len(PROMPT)
    opened.step([1, 2])


def test_more_room_than_a_model_has_positions_is_refused_when_it_is_opened(exports: dict[str, Path]) -> None:
    with pytest.raises(
        UnsupportedError, match=rf"expected -{ROOM} to {ROOM - 1}, .* for a room of {ROOM + 1}"
    ):
        OpenDecoder(graph(exports["gpt2"]), ROOM + 1)


def changed(folder: Path, to: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    """A copy of an export whose graph was changed."""
    copy = Path(shutil.copytree(folder, to))
    model = onnx.load(graph(copy), load_external_data=False)
    change(model)
    onnx.save(model, graph(copy))
    return copy


def node(model: onnx.ModelProto, op: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in model.graph.node if node.op_type == op)
    return found


def attention(**attributes: Any) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for each in model.graph.node:
            if each.op_type == "GroupQueryAttention":
                each.attribute.extend(
                    helper.make_attribute(name, value) for name, value in attributes.items()
                )

    return change


def scales(model: onnx.ModelProto) -> None:
    """A scale for each channel, small enough that values are cut."""
    for tensor in model.graph.initializer:
        if tensor.name.startswith("attention."):
            scale = numpy_helper.to_array(tensor).item()
            channels = np.linspace(0.2 * scale, scale, 48, dtype=np.float32).reshape(1, 2, 1, 24)
            tensor.CopyFrom(numpy_helper.from_array(channels, tensor.name))
    for each in model.graph.node:
        for attribute in each.attribute:
            if attribute.name in ("k_quant_type", "v_quant_type"):
                attribute.s = b"PER_CHANNEL"


@pytest.mark.parametrize(
    ("name", "change", "near"),
    [
        ("llama", attention(local_window_size=7), NEAR),
        ("gpt2", attention(softcap=2.0), NEAR),
        ("llama with int8", scales, NEAR_INT8),
    ],
    ids=["a window", "a cap", "a scale each channel"],
)
def test_attention_has_what_families_ask_of_it(
    exports: dict[str, Path], tmp_path: Path, name: str, change: Callable[..., Any], near: float
) -> None:
    text = np.random.default_rng(3).integers(2, 100, 30).tolist()
    copy = changed(exports[name], tmp_path / "out", change)
    assert_logits_agree(copy, [text[:20], *([token] for token in text[20:])], near)


def rename(op: str, to: str) -> Callable[[onnx.ModelProto], None]:
    return lambda model: setattr(node(model, op), "op_type", to)


def set_number(op: str, name: str, value: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        found = node(model, op)
        kept = [attribute for attribute in found.attribute if attribute.name != name]
        del found.attribute[:]
        found.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def as_half(model: onnx.ModelProto) -> None:
    next(
        value for value in model.graph.input if "past" in value.name
    ).type.tensor_type.elem_type = TensorProto.FLOAT16


def shorten(model: onnx.ModelProto) -> None:
    bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("ln_f.bias"))
    bias.CopyFrom(numpy_helper.from_array(np.zeros(63, np.float32), bias.name))


REFUSED: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "an operator": (rename("Tanh", "Erf"), r"node 'node_tanh' \(Erf\): this operator is not among"),
    "an attribute": (
        set_number("LayerNormalization", "weird", 1),
        "attribute 'weird': got an integer",
    ),
    "a type": (set_number("Cast", "to", TensorProto.FLOAT16), "to: got element type 10, expected float32"),
    "a float16 cache": (as_half, "input 'past_key_values.0.key' .element type 10.*float32 or int8"),
    "a shape": (shorten, r"LayerNormalization\): scale and bias: expected 64 floats each"),
    "an axis": (set_number("LayerNormalization", "axis", 9), "axis: got 9 for 3 dimensions"),
    "no window": (
        set_number("GroupQueryAttention", "local_window_size", 0),
        "local_window_size: got 0, expected 1 or more, or -1",
    ),
    "an unknown attribute": (
        set_number("BcqMatMul", "transpose", 1),
        "attribute 'transpose': got an integer",
    ),
    "a level": (set_number("BcqMatMul", "accuracy_level", 7), r"BcqMatMul\): accuracy_level: got 7"),
    "heads": (set_number("GroupQueryAttention", "num_heads", 0), "num_heads, kv_num_heads: got 0 and 4"),
    "a lost input": (lambda m: node(m, "Tanh").input.__setitem__(0, "x"), "'x': nothing before this node"),
    "an input more": (
        lambda m: node(m, "Tanh").input.append("input_ids"),
        "input 1 .'input_ids'.: it is not",
    ),
    "a value twice": (
        lambda m: node(m, "Tanh").output.__setitem__(0, "add_24"),
        "'add_24': two nodes compute it",
    ),
    "an input twice": (lambda m: m.graph.input.append(m.graph.input[0]), "input 'input_ids': got it twice"),
    "no logits": (lambda m: setattr(m.graph.output[0], "name", "x"), "the graph has no output 'logits'"),
    "codes": (set_number("BcqMatMul", "N", 7), r"BcqMatMul\): codes"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_run_is_refused_by_the_name_of_its_node(
    exports: dict[str, Path], tmp_path: Path, what: str
) -> None:
    change, reason = REFUSED[what]
    with pytest.raises(UnsupportedError, match=reason) as refusal:
        OpenDecoder(graph(changed(exports["gpt2"], tmp_path / "out", change)), 16)
    assert "model.onnx: " in refusal.value.message
    assert "Leave --native out" in refusal.value.hint


def test_a_graph_that_is_cut_short_anywhere_is_refused(exports: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exports["gpt2"], tmp_path / "out"))
    whole = graph(copy).read_bytes()
    for size in range(0, len(whole), max(1, len(whole) // 40)):
        graph(copy).write_bytes(whole[:size])
        with pytest.raises(UnsupportedError):
            OpenDecoder(graph(copy), 16)


def test_the_command_prints_the_same_with_and_without_onnxruntime(
    demo_export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", str(demo_export), "-p", "The people of the", "-n", "12"]
    said = []
    for options in ([], ["--native"], ["--native", "--threads", "2"]):
        assert cli.main([*words, *options]) == 0
        said.append(capsys.readouterr().out)
    assert said[1] == said[0] == said[2]
    assert cli.main(["run", str(demo_export), "--tokens", "3,4,5", "-n", "4", "--native", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["new_tokens"] == 4


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--native", "--adapter", "a"], "E203"),
        (["--threads", "2"], "E203"),
        (["--native", "--threads", "0"], "E202"),
        (["--native", "--bits", "7"], "E202"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    demo_export: Path, options: list[str], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", str(demo_export), "-p", "x", *options]) == 2
    assert code in capsys.readouterr().err


def test_a_file_of_prompts_and_what_is_no_decoder_are_refused(
    demo_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts").write_text("a\nb\n", encoding="utf-8")
    assert cli.main(["run", str(demo_export), "--prompts", str(tmp_path / "prompts"), "--native"]) == 2
    assert "E203" in capsys.readouterr().err
    with pytest.raises(BcqError, match="E101"):
        native.load(tmp_path / "nothing")
    with pytest.raises(BcqError, match="batches"):
        native.load(demo_export).generate_batch(["a", "b"])
    with pytest.raises(BcqError, match="E303"):
        native.load(demo_export).generate("a", adapter="b")


def test_onnxruntime_is_not_imported(demo_export: Path) -> None:
    program = (
        "import sys; from bcq.native.model import load; load(sys.argv[1]).generate([3, 4], 2); "
        "sys.exit('onnxruntime' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(demo_export)], check=True)


def program(folder: Path, libraries: list[Path], by: str = "gcc") -> Path:
    """examples/cpp/native.c."""
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{RUNTIME / 'capi'}"]
    where = f"-Wl,-rpath,{libraries[0].parent}"
    source, target = EXAMPLES / "native.c", folder / "native"
    ran(compiler(by), *flags, source, *libraries, where, "-lstdc++", "-lm", "-pthread", "-o", target)
    return target


def assert_program_agrees(command: list[str | Path], folder: Path) -> None:
    """What it prints is what Python generates, which leaves an end token out and stops there."""
    model = load(folder)
    expected = model.generate(PROMPT, 12)
    tokens = [int(word) for word in ran(*command, folder, "12", *map(str, PROMPT), "--threads", "2").split()]
    assert tokens[: len(expected)] == expected
    assert len(expected) == len(tokens) == 12 or tokens[len(expected)] in model.end_tokens


def test_the_c_program_prints_the_tokens_of_onnxruntime(folder: Path, tmp_path: Path) -> None:
    assert_program_agrees([program(tmp_path, [library_path()])], folder)


def test_the_c_program_tells_its_memory_and_what_is_wrong(exports: dict[str, Path], tmp_path: Path) -> None:
    made = program(tmp_path, [library_path()])
    cases: list[tuple[list[str | Path], int, str]] = [
        ([exports["gpt2"], "2", "3", "--memory"], 0, "arena "),
        ([exports["gpt2"], "2", "300"], 1, "expected -100 to 99"),
        ([tmp_path, "2", "3"], 1, "model.onnx: No such file"),
        ([], 1, "use: native FOLDER COUNT ID..."),
    ]
    for words, status, told in cases:
        done = subprocess.run([made, *words], capture_output=True, text=True)
        assert done.returncode == status
        assert told in done.stderr


def test_the_c_program_on_64_bit_arm_prints_the_tokens_of_this_cpu(
    exports: dict[str, Path], tmp_path: Path
) -> None:
    arm = other_cpu(tmp_path)
    libraries = [arm.folder / "libbcq_native.a", arm.folder / "libbcq_core.a"]
    made = program(tmp_path, libraries, "aarch64-linux-gnu-gcc")
    for name in ("gpt2", "llama"):
        assert_program_agrees([*arm.emulation("max"), made], exports[name])


def test_functions_are_within_a_few_units_of_the_last_place(tmp_path: Path) -> None:
    done = run_program(tmp_path, NATIVE / "native_math.cc")
    found = {name: float(value) for name, value in (line.split() for line in done.stdout.splitlines())}
    assert (found["ends"], found["nans"]) == (1, 1)
    # exp: half a unit for each of the last two sums, and what the product with log2(e) leaves; tanh and the
    # logistic function divide once more.
    assert found["exp"] <= 2
    assert found["tanh"] <= 2
    assert found["logistic"] <= 3
