# SPDX-License-Identifier: Apache-2.0
"""One model, many tasks: the slots of an export, its adapter files, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

pytest.importorskip("torch", reason="exporting needs the packages for compiling")

import bcq
from bcq.adapters.adapter import Adapter, Alphas
from bcq.adapters.ort import FILE, run_options
from bcq.adapters.slots import SLOTS_FILE, Slots
from bcq.adapters.tasks import BASE_KEY, Tasks, feeds
from bcq.cli import main
from bcq.errors import BcqError
from bcq.export import export
from bcq.files.base import QuantizedBase
from bcq.files.integrity import check_integrity
from tiny_adapters import task, tiny_base

PROMPT = [3, 4, 5, 6]
Q_PROJ, V_PROJ = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "qv")
NORM = "model.norm.weight"


@dataclass(frozen=True)
class Made:
    """A base of a Llama with fused products and ragged sizes, four tasks, and one export that serves them."""

    base: QuantizedBase
    tasks: dict[str, Adapter]
    folder: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("made")
    base = tiny_base(root, "llama", offset=True)
    everything = ("alpha_1", "alpha_rest", "offset")
    partial = task(base, "partial", 3)
    norm = base.checkpoint.read(NORM) * np.float32(1.5)
    tasks = {
        "a": task(base, "a", 1),
        "all": task(base, "all", 2, parts=everything),
        "partial": replace(partial, alphas={name: partial.alphas[name] for name in (Q_PROJ, V_PROJ)}),
        "dense": replace(task(base, "dense", 4), dense={NORM: norm}),
    }
    for name, adapter in tasks.items():
        adapter.save(root / "tasks" / name)
    export(base, root / "out", adapters=[root / "tasks" / name for name in tasks])
    return Made(base, tasks, root / "out")


@pytest.fixture
def folder(made: Made, tmp_path: Path) -> Path:
    """A copy of the export to damage."""
    return Path(shutil.copytree(made.folder, tmp_path / "out"))


def inputs() -> dict[str, Any]:
    tokens = np.array([PROMPT], np.int64)
    cache = {
        f"past_key_values.{n}.{p}": np.zeros((1, 2, 0, 18), np.float32)
        for n in (0, 1)
        for p in ("key", "value")
    }
    return {
        "input_ids": tokens,
        "attention_mask": np.ones_like(tokens),
        "position_ids": np.arange(4)[None],
        **cache,
    }  # fmt: skip


def logits(folder: Path, more: dict[str, Any] | None = None, **options: Any) -> Any:
    return bcq.session(folder, **options).run(["logits"], {**inputs(), **(more or {})})[0]


def code_of(call: Any) -> tuple[str, str]:
    with pytest.raises(BcqError) as caught:
        call()
    assert "\n" not in caught.value.message
    return caught.value.code, caught.value.message


def test_every_task_has_the_bits_of_a_model_of_its_own(made: Made, tmp_path: Path) -> None:
    """Fed inputs and adapter files, fused products included; the base is what it is without slots."""
    swappable = bcq.session(made.folder)
    for name, adapter in made.tasks.items():
        export(made.base, tmp_path / "own", adapter=adapter)
        own = logits(tmp_path / "own")
        fed = swappable.run(["logits"], {**inputs(), **feeds(made.folder, name)})[0]
        options, _kept = run_options(made.folder / "adapters" / name / FILE)
        by_file = swappable.run(["logits"], inputs(), options)[0]
        np.testing.assert_array_equal(fed, own)
        np.testing.assert_array_equal(by_file, own)
    export(made.base, tmp_path / "own")
    plain = logits(tmp_path / "own")
    np.testing.assert_array_equal(swappable.run(["logits"], inputs())[0], plain)
    assert not np.array_equal(plain, own)


def test_a_model_of_one_task_has_no_slots_and_names_the_task(made: Made, tmp_path: Path) -> None:
    export(made.base, tmp_path / "own", adapter=made.tasks["a"])
    session = bcq.session(tmp_path / "own")
    assert [value.name for value in session.get_overridable_initializers()] == ["logits_to_keep"]
    assert session.get_modelmeta().custom_metadata_map["bcq.adapter"] == "a"
    assert not (tmp_path / "own" / "adapters").exists()


def test_slots_are_those_of_every_product_and_of_what_the_tasks_hold_besides(made: Made) -> None:
    slots = Slots.read(made.folder / "adapters")
    inputs_of = {value.name: value.shape for value in bcq.session(made.folder).get_overridable_initializers()}
    assert inputs_of == {
        "logits_to_keep": [1],
        slots.mark: [1],
        **{slot.name: list(slot.shape) for slot in slots.slots},
    }
    assert {slot.part for slot in slots.slots} == {"alpha_1", "alpha_rest", "offset", "dense"}
    fused = next(slot for slot in slots.slots if len(slot.owners) == 3)
    assert [name for name, _ in fused.owners] == [Q_PROJ, Q_PROJ.replace("q_proj", "k_proj"), V_PROJ]


def test_without_the_library_tasks_give_the_same_within_rounding(made: Made) -> None:
    more = feeds(made.folder, "all")
    alone, own = logits(made.folder, more, with_library=False), logits(made.folder, more)
    # Near-exact products are within 1e-4 of exact ones; the 15 of this model add up to sqrt(15) * 1e-4.
    assert np.abs(alone - own).max() < 4e-4 * np.abs(own).max()


def test_a_model_generates_with_the_task_of_each_call(made: Made, tmp_path: Path) -> None:
    model = bcq.load(made.folder)
    assert model.adapters() == sorted(made.tasks)
    plain = model.generate(PROMPT, 8)
    for name, adapter in made.tasks.items():
        export(made.base, tmp_path / "own", adapter=adapter)
        expected = bcq.load(tmp_path / "own").generate(PROMPT, 8)
        assert model.generate(PROMPT, 8, adapter=name) == expected
        assert list(model.stream(PROMPT, 8, adapter=adapter)) == expected
        model.use(name)
        assert model.generate(PROMPT, 8) == expected
        model.use(None)
    assert model.generate(PROMPT, 8) == plain


def test_rows_of_one_batch_have_tasks_of_their_own(made: Made) -> None:
    model = bcq.load(made.folder)
    prompts = [PROMPT, [7, 8], [9], PROMPT, [2, 60, 11]]
    adapters = ["a", "all", "a", None, made.tasks["dense"]]
    expected = [
        model.generate(prompt, 6, adapter=adapter) for prompt, adapter in zip(prompts, adapters, strict=True)
    ]
    assert model.generate_batch(prompts, adapters, 6) == expected
    assert model.generate_batch(prompts, max_new_tokens=6) == [
        model.generate(prompt, 6) for prompt in prompts
    ]
    assert model.generate_batch(prompts, adapters, 0) == [[]] * 5
    assert code_of(lambda: model.generate_batch(prompts, ["a"]))[0] == "E202"


def test_rows_of_a_batch_draw_and_end_as_they_do_alone(made: Made) -> None:
    model = bcq.load(made.folder)
    drawn = {"temperature": 0.8, "seed": 3}
    first = model.generate(PROMPT, 6, adapter="a", **drawn)
    model.end_tokens = frozenset(first[2:3])  # the first row ends early, wherever the others are
    expected = [model.generate(prompt, 6, adapter="a", **drawn) for prompt in (PROMPT, [7, 8])]
    assert model.generate_batch([PROMPT, [7, 8]], ["a", "a"], 6, **drawn) == expected


def test_a_task_that_was_made_later_runs_in_an_old_export(made: Made, tmp_path: Path) -> None:
    later = task(made.base, "later", 9)
    later.save(tmp_path / "later")
    model = bcq.load(made.folder)
    assert model.generate(PROMPT, 8, adapter=tmp_path / "later") == model.generate(PROMPT, 8, adapter=later)
    assert "later" not in model.adapters()


def test_a_task_of_another_base_is_refused_by_every_way_in(made: Made, tmp_path: Path) -> None:
    other = tiny_base(tmp_path, "llama", bits=1)
    stranger = task(other, "stranger", 1)
    for call in (
        lambda: export(made.base, tmp_path / "out", adapter=stranger),
        lambda: export(made.base, tmp_path / "out", adapters=[made.tasks["a"], stranger]),
        lambda: bcq.load(made.folder).generate(PROMPT, 2, adapter=stranger),
    ):
        code, message = code_of(call)
        assert code == "E301"
        assert made.base.base_hash in message
        assert other.base_hash in message
    assert not (tmp_path / "out").exists()


def test_onnxruntime_itself_refuses_an_adapter_file_on_the_model_of_another_base(
    made: Made, tmp_path: Path
) -> None:
    other = tiny_base(tmp_path, "llama", seed=1)
    export(other, tmp_path / "out", adapters=[task(other, "a", 1)])
    options, _kept = run_options(made.folder / "adapters" / "a" / FILE)
    with pytest.raises(Exception, match=f"made_for_base_{made.base.base_hash}"):
        bcq.session(tmp_path / "out").run(["logits"], inputs(), options)


def test_adapters_of_another_export_are_refused(made: Made, folder: Path, tmp_path: Path) -> None:
    other = tiny_base(tmp_path, "llama", seed=1)
    export(other, tmp_path / "other", adapters=[task(other, "a", 1)])
    shutil.rmtree(folder / "adapters")
    shutil.copytree(tmp_path / "other" / "adapters", folder / "adapters")
    assert code_of(lambda: bcq.load(folder).generate(PROMPT, 2, adapter="a"))[0] == "E301"


def test_what_cannot_be_swapped_is_refused(made: Made, tmp_path: Path) -> None:
    model = bcq.load(made.folder)
    code, message = code_of(lambda: model.generate(PROMPT, 2, adapter="nope"))
    assert (code, "it has: a, all, dense, partial" in message) == ("E303", True)
    export(made.base, tmp_path / "few", adapters=[made.tasks["a"]])
    few = bcq.load(tmp_path / "few")
    assert code_of(lambda: few.use(made.tasks["all"]))[0] == "E303"
    assert code_of(lambda: few.use(made.tasks["dense"]))[0] == "E303"
    export(made.base, tmp_path / "none")
    none = bcq.load(tmp_path / "none")
    assert none.adapters() == []
    assert code_of(lambda: none.use("a"))[0] == "E303"
    assert code_of(lambda: Tasks(tmp_path / "none"))[0] == "E303"


def test_shapes_are_checked_where_there_is_no_base_to_ask(made: Made) -> None:
    good = made.tasks["a"]
    model = bcq.load(made.folder)
    for shape in ((72, 1), (71, 3), (80, 3)):
        wrong = replace(good, alphas={Q_PROJ: Alphas(np.ones(shape, np.float16))})
        code, message = code_of(lambda wrong=wrong: model.use(wrong))
        assert (code, Q_PROJ in message) == ("E302", True)
    dense = replace(made.tasks["dense"], dense={NORM: np.ones(71, np.float32)})
    assert code_of(lambda: model.use(dense))[0] == "E302"


def test_options_that_do_not_go_together_are_refused(made: Made, tmp_path: Path) -> None:
    one, out = made.tasks["a"], tmp_path / "out"
    assert code_of(lambda: export(made.base, out, adapter=one, adapters=[one]))[0] == "E203"
    assert code_of(lambda: export(made.base, out, adapters=[one, one]))[0] == "E203"
    inside = made.folder / "adapters" / "a"
    assert code_of(lambda: export(made.base, made.folder, adapter=inside))[0] == "E203"
    graph = made.folder / "model.onnx"
    assert code_of(lambda: export(graph, out, adapter=one))[0] == "E203"
    unread = replace(one, dense={"lm_head.bias": np.ones(3, np.float32)})
    assert code_of(lambda: export(made.base, out, adapter=unread))[0] == "E302"
    assert not out.exists()


def test_verify_and_integrity_know_slots_and_adapters(made: Made, folder: Path) -> None:
    assert bcq.verify(made.folder, made.base.folder.parent / "model").ok
    assert check_integrity(folder).ok
    file = folder / "adapters" / "a" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    assert check_integrity(folder).faults == [
        "adapters/a/adapter_model.safetensors has other content than when it was written."
    ]


def test_verify_knows_which_tensors_a_task_has_replaced(made: Made, tmp_path: Path) -> None:
    model = made.base.folder.parent / "model"
    export(made.base, tmp_path / "own", adapter=made.tasks["dense"])
    assert bcq.verify(tmp_path / "own", model).ok
    other = replace(made.tasks["dense"], dense={NORM: made.tasks["dense"].dense[NORM][:-1]})
    assert code_of(lambda: export(made.base, tmp_path / "own", adapter=other))[0] == "E302"


def test_the_same_export_twice_gives_the_same_bytes(made: Made, tmp_path: Path) -> None:
    export(made.base, tmp_path / "again", adapters=list(made.tasks.values()))
    names = sorted(path.relative_to(made.folder) for path in made.folder.rglob("*") if path.is_file())
    assert len(names) > 4 * 3
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (made.folder / name).read_bytes(), name


def test_adapters_that_are_links_out_of_the_export_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "adapters" / "a").rename(tmp_path / "a")
    (folder / "adapters" / "a").symlink_to(tmp_path / "a")
    assert code_of(lambda: feeds(folder, "a"))[0] == "E108"
    (folder / "adapters" / SLOTS_FILE).rename(tmp_path / SLOTS_FILE)
    (folder / "adapters" / SLOTS_FILE).symlink_to(tmp_path / SLOTS_FILE)
    assert code_of(lambda: feeds(folder, "all"))[0] == "E108"


def test_cut_or_flipped_slots_never_end_in_anything_but_a_clear_error(folder: Path) -> None:
    file = folder / "adapters" / SLOTS_FILE
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:cut] for cut in rng.integers(0, len(whole) - 1, 20)]
    for bit in rng.integers(0, 8 * len(whole), 200):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for content in damaged:
        file.write_bytes(content)
        assert refusal(folder) in ("", "E101", "E103", "E109", "E301", "E302", "E303")


def refusal(folder: Path) -> str:
    try:
        feeds(folder, "all")
    except BcqError as fault:
        return fault.code
    return ""


def test_a_session_with_slots_says_nothing_on_the_terminal(
    made: Made, capfd: pytest.CaptureFixture[str]
) -> None:
    bcq.load(made.folder).generate(PROMPT, 2, adapter="a")
    assert capfd.readouterr() == ("", "")


def test_the_commands_bake_swap_and_measure(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = made.base.folder.parent / "tasks"
    base, out = str(made.base.folder), str(tmp_path / "out")
    assert (
        main(["export", base, "-o", out, "--adapters", str(tasks / "a"), str(tasks / "all"), "--quiet"]) == 0
    )
    command = json.loads((tmp_path / "out" / "MANIFEST.json").read_text())["command"]
    assert command == ["bcq", "export", "base", "--adapters", "a", "all"]
    capsys.readouterr()
    assert main(["run", out, "--tokens", "3,4,5,6", "-n", "8", "--adapter", "a", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["continuation"] == bcq.load(made.folder).generate(PROMPT, 8, adapter="a")
    assert main(["run", out, "--tokens", "3", "--adapter", "x"]) == 3
    assert "error[E303]" in capsys.readouterr().err
    assert (
        main(["export", base, "-o", out, "--adapter", str(tasks / "a"), "--adapters", str(tasks / "a")]) == 2
    )


def test_the_model_tells_its_base(made: Made) -> None:
    told = bcq.session(made.folder).get_modelmeta().custom_metadata_map
    assert told[BASE_KEY] == made.base.base_hash


def test_genai_swaps_tasks_with_the_same_files(made: Made, capfd: pytest.CaptureFixture[str]) -> None:
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    model = genai.Model(str(made.folder))
    adapters = genai.Adapters(model)
    for name in made.tasks:
        adapters.load(str(made.folder / "adapters" / name / FILE), name)
    ours = bcq.load(made.folder)
    asked: tuple[str | None, ...] = (None, *made.tasks, None, "a")
    for task_name in asked:
        settings = genai.GeneratorParams(model)
        settings.set_search_options(max_length=len(PROMPT) + 8)
        generator = genai.Generator(model, settings)
        if task_name:
            generator.set_active_adapter(adapters, task_name)
        generator.append_tokens(PROMPT)
        while not generator.is_done():
            generator.generate_next_token()
        made_by_genai = [int(token) for token in generator.get_sequence(0)][len(PROMPT) :]
        expected = ours.generate(PROMPT, 8, adapter=task_name)
        assert made_by_genai[: len(expected)] == expected
    assert capfd.readouterr() == ("", "")


def test_the_examples_of_the_page_run_and_agree(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "adapters.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 4
    export(
        made.base,
        tmp_path / "out",
        adapters=[replace(made.tasks["a"], name=name) for name in ("e2e", "chat")],
    )
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {"inputs": inputs()}
    for block in blocks[: 4 if find_spec("onnxruntime_genai") else 3]:
        exec(block, known)
    assert capsys.readouterr().out.startswith("['chat', 'e2e']\n")
    np.testing.assert_array_equal(known["logits"], known["same"])


def test_any_session_of_onnxruntime_can_be_fed(made: Made) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.register_custom_ops_library(str(bcq.runtime.library_path()))
    plain = onnxruntime.InferenceSession(str(made.folder / "model.onnx"), options)
    fed = plain.run(["logits"], {**inputs(), **feeds(made.folder, "a")})[0]
    np.testing.assert_array_equal(fed, logits(made.folder, feeds(made.folder, "a")))
