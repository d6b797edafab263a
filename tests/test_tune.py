# SPDX-License-Identifier: Apache-2.0
"""A base and a task's data become an adapter: it learns, repeats, goes on after a stop, names faults."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bcq
import bcq.nn
import tiny_models
from bcq.adapters.adapter import Adapter
from bcq.cli import main
from bcq.errors import BcqError
from bcq.files.base import QuantizedBase
from bcq.generation.text import open_tokenizer
from bcq.tuning import checkpoint as checkpoints
from bcq.tuning.options import TuneOptions
from bcq.tuning.train import batches
from bcq.tuning.tune import TuneResult, tune

# What follows "name: X, area: Y" is a fixed phrase with both words: learnt within a few updates.
PLACES = ["Rome", "Paris", "York", "Bath", "Oslo", "Bonn"]
ROWS = [{"mr": f"name {a}, near {b}", "ref": f"{a} is near {b} ."} for a in PLACES for b in PLACES if a != b]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> QuantizedBase:
    """The demo model at 2 bits."""
    with as_file(files("bcq") / "demo_model") as model:
        return bcq.quantize(model, tmp_path_factory.mktemp("demo") / "base", bits=2, method="alternating")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QuantizedBase]:
    """A seeded random BERT with the demo model's words, dense and at 2 bits."""
    root = tmp_path_factory.mktemp("encoder")
    dense = tiny_models.save("bert", root / "bert", vocab_size=1536, max_position_embeddings=64)
    (dense / "tokenizer.json").write_text((files("bcq") / "demo_model" / "tokenizer.json").read_text())
    return dense, bcq.quantize(dense, root / "base", bits=2, group_size=32, method="alternating")


def lines(folder: Path, rows: list[Any], name: str = "task.jsonl") -> Path:
    text = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(text) + "\n", encoding="utf-8")
    return folder / name


def quick(**changes: Any) -> TuneOptions:
    return TuneOptions(**{"steps": 12, "batch_size": 8, "checkpoint_every": 0, **changes})


def same(one: Adapter, other: Adapter) -> bool:
    tensors = other.tensors()
    return all(np.array_equal(array, tensors[name]) for name, array in one.tensors().items())


def test_alpha_tuning_learns_a_task_and_leaves_the_base_alone(base: QuantizedBase, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in base.folder.rglob("*") if path.is_file()}
    data = lines(tmp_path, ROWS)
    result = tune(base, data, tmp_path / "e2e", options=quick(), dev=data)
    assert result.figures["dev_nll"] < 0.7 * result.figures["start_nll"]
    assert {path: path.read_bytes() for path in before} == before
    stored = Adapter.open(tmp_path / "e2e")
    stored.check_fits(base)
    assert same(result.adapter, stored)
    assert stored.name == "e2e"
    assert len(stored.alphas) == 16
    assert stored.count == result.trained == 5120
    assert result.total == 891136
    assert stored.metadata["task"] == "lm"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e2e", "task.jsonl"]


def test_tuned_factors_do_in_the_base_what_they_did_in_training(base: QuantizedBase, tmp_path: Path) -> None:
    """The dequantized base with the adapter's factors has the loss that training ended with."""
    import transformers

    from bcq import packing
    from bcq.frontends.hf import read_dense
    from bcq.tuning.data import Example
    from bcq.tuning.language import LanguageTask

    data = lines(tmp_path, ROWS)
    result = tune(base, data, options=quick(train=("alpha_1", "alpha_rest", "bias", "norm")), dev=data)
    with as_file(files("bcq") / "demo_model") as folder:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = read_dense(base, name)
            if name in result.adapter.alphas:
                tuned = packing.unpack(result.adapter.alphas[name].applied(base.packed(name))).dequantize()
                values = tuned.T if base.matrices[name].transposed else tuned
            values = result.adapter.dense.get(name, values)
            parameter.copy_(torch.from_numpy(np.array(values)))
    examples = [Example(row["mr"], (row["ref"],)) for row in ROWS]
    task = LanguageTask(open_tokenizer(base.folder), 0, 256, quick(), examples)
    # The same float32 sums in another order; embeddings and activations pass through four layers.
    assert task.evaluate(model.eval(), examples)["nll"] == pytest.approx(result.figures["dev_nll"], rel=1e-4)


def test_an_exported_model_serves_what_was_tuned(base: QuantizedBase, tmp_path: Path) -> None:
    """Logits of the export with the adapter are those of the torch model that was trained."""
    from bcq.frontends.architectures import architecture_of
    from bcq.tuning.load import load_packed

    adapter = bcq.tune(base, lines(tmp_path, ROWS), tmp_path / "e2e", steps=4, batch_size=8)
    bcq.export(base, tmp_path / "out", adapters=[tmp_path / "e2e"])
    model = load_packed(base, architecture_of(base.config))
    with torch.no_grad():
        for name, matrix in bcq.nn.packed_matrices(model).items():
            if name in adapter.alphas:
                matrix.alpha_1.copy_(torch.from_numpy(adapter.alphas[name].tiled()["alpha_1"]))
    ids = list(range(3, 43))  # more than the kernels take in torch: a dense product there, look-ups here
    served = bcq.load(tmp_path / "out")
    served.use("e2e")
    row = np.array([ids])
    got = served.logits(row, served.empty_cache(), np.ones_like(row))[0][0]
    wanted = model(torch.tensor([ids])).logits[0].detach().numpy()
    # Near-exact products, an RMS error of at most 1e-4 each where terms do not cancel, through four layers.
    assert np.linalg.norm(got - wanted) <= 1e-3 * np.linalg.norm(wanted)


def test_two_runs_give_the_same_adapter_and_another_seed_another(base: QuantizedBase, tmp_path: Path) -> None:
    data = lines(tmp_path, ROWS)
    first, again, other = (tune(base, data, options=quick(steps=3, seed=seed)).adapter for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


def test_a_stopped_run_goes_on_to_the_same_bytes(
    base: QuantizedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = lines(tmp_path, ROWS)
    options = quick(steps=7, checkpoint_every=2)
    tune(base, data, tmp_path / "whole", options=options, name="e2e")
    stop_after(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        tune(base, data, tmp_path / "e2e", options=options)
    monkeypatch.undo()
    assert (tmp_path / ".e2e.tuning.safetensors").is_file()
    assert not (tmp_path / "e2e").exists()
    with pytest.raises(BcqError, match="another base") as caught:
        tune(base, data, tmp_path / "e2e", options=quick(steps=8, checkpoint_every=2), resume=True)
    assert caught.value.code == "E109"
    steps = Steps()
    tune(base, data, tmp_path / "e2e", options=options, resume=True, progress=steps)
    assert steps.count == 3
    for path in (tmp_path / "whole").iterdir():
        if "json" not in path.suffix:
            assert path.read_bytes() == (tmp_path / "e2e" / path.name).read_bytes(), path.name
    assert not (tmp_path / ".e2e.tuning.safetensors").exists()


class Steps:
    """Counts updates."""

    def __init__(self) -> None:
        self.count = 0

    def start(self, what: str, total: int) -> None:
        assert what == "tune"

    def step(self, name: str, detail: str = "") -> None:
        assert "loss" in detail
        self.count += 1

    def done(self) -> None: ...


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    write: Callable[[Any, int], None] = checkpoints.TrainingState.write

    def write_and_stop(self: checkpoints.TrainingState, done: int) -> None:
        write(self, done)
        if done == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.TrainingState, "write", write_and_stop)


def test_a_damaged_checkpoint_is_refused(base: QuantizedBase, tmp_path: Path) -> None:
    (tmp_path / ".e2e.tuning.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(BcqError, match="damaged") as caught:
        tune(base, lines(tmp_path, ROWS), tmp_path / "e2e", options=quick(), resume=True)
    assert caught.value.code == "E103"


def test_classification_with_a_decoder_answers_with_the_label(base: QuantizedBase, tmp_path: Path) -> None:
    rows = [f"it was {word}\t{label}" for word, label in WORDS * 6]
    data = lines(tmp_path, rows, "reviews.tsv")
    result = tune(base, data, options=quick(task="classification", steps=24), dev=data)
    assert result.figures["dev_accuracy"] > 0.8
    assert result.adapter.metadata["labels"] == ["bad", "good"]


WORDS = [
    ("great", "good"),
    ("fine", "good"),
    ("nice", "good"),
    ("poor", "bad"),
    ("weak", "bad"),
    ("dull", "bad"),
]


def test_classification_with_an_encoder_trains_a_head(
    encoder: tuple[Path, QuantizedBase], tmp_path: Path
) -> None:
    data = lines(tmp_path, [f"it was {word}\t{label}" for word, label in WORDS * 6], "reviews.tsv")
    result = tune(
        encoder[1], data, options=quick(task="classification", steps=30, learning_rate=3e-2), dev=data
    )
    assert result.figures["dev_accuracy"] >= 0.9
    assert np.shape(result.adapter.metadata["head"]["weight"]) == (2, 64)
    assert result.trained == result.adapter.count + 2 * 64 + 2


def test_similarity_moves_cosines_towards_the_scores(
    encoder: tuple[Path, QuantizedBase], tmp_path: Path
) -> None:
    rows = [f"{a} is old\t{b} is old\t{5 if a == b else 0}" for a in PLACES for b in PLACES]
    data = lines(tmp_path, rows, "sts.tsv")
    result = tune(encoder[1], data, options=quick(task="similarity", steps=30), dev=data)
    assert result.figures["dev_error"] < 0.9 * result.figures["start_error"]


def test_distillation_moves_embeddings_towards_the_teacher(
    encoder: tuple[Path, QuantizedBase], tmp_path: Path
) -> None:
    data = lines(tmp_path, [row["ref"] for row in ROWS], "texts.txt")
    options = quick(task="distill", learning_rate=3e-3, train=("alpha_1", "embeddings"))
    result = tune(encoder[1], data, options=options, dev=data, teacher=encoder[0])
    assert result.figures["dev_cosine"] > result.figures["start_cosine"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ('{"mr": "a"', r"task\.jsonl, line 2: it is not JSON"),
        ("[1]", r"line 2: got a list, expected an object"),
        (
            '{"meaning": "a", "ref": "b"}',
            r"line 2: got the fields meaning, ref, expected one of the fields mr",
        ),
        ('{"mr": "a"}', r"line 2: got the fields mr, expected one of the fields ref"),
        ('{"mr": 3, "ref": "b"}', r"line 2: got 3 for the text"),
        ('{"mr": "a", "ref": []}', r"line 2: got \[\] for the answer"),
        (json.dumps({"mr": "a " * 300, "ref": "b"}), r"tokens, expected at most 256: 'a a"),
    ],
)
def test_a_bad_line_is_named(base: QuantizedBase, tmp_path: Path, row: str, told: str) -> None:
    with pytest.raises(BcqError, match=told) as caught:
        tune(base, lines(tmp_path, [ROWS[0], row]), tmp_path / "e2e", options=quick())
    assert caught.value.code == "E102"
    assert not (tmp_path / "e2e").exists()


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("a\tb", "2 columns"),
        ("a\tb\t7", "from 0 to 5"),
        ("a\tb\tnan", "from 0 to 5"),
        ("a\tb\tx", "for the score"),
    ],
)
def test_a_bad_score_is_named(
    encoder: tuple[Path, QuantizedBase], tmp_path: Path, row: str, told: str
) -> None:
    with pytest.raises(BcqError, match=told) as caught:
        tune(encoder[1], lines(tmp_path, [row], "sts.tsv"), options=quick(task="similarity"))
    assert caught.value.code == "E102"


def test_other_fields_lists_of_answers_and_compressed_files_are_read(tmp_path: Path) -> None:
    import lzma

    from bcq.tuning.data import read_examples

    (tmp_path / "task.jsonl.xz").write_bytes(
        lzma.compress(b'{"q": "a", "as": ["b", "c"]}\n\n{"q": "d", "as": 7}\n')
    )
    found = read_examples(tmp_path / "task.jsonl.xz", TuneOptions(source="q", target="as"))
    assert [(one.text, one.answers) for one in found] == [("a", ("b", "c")), ("d", ("7",))]
    (tmp_path / "cut.xz").write_bytes((tmp_path / "task.jsonl.xz").read_bytes()[:40])
    with pytest.raises(BcqError, match="cut short") as caught:
        read_examples(tmp_path / "cut.xz", TuneOptions())
    assert caught.value.code == "E103"


@pytest.mark.parametrize(
    "changes",
    [{"task": "x"}, {"train": ()}, {"train": ("beta",)}, {"steps": 0}, {"learning_rate": 0.0},
     {"epochs": -1.0}, {"batch_size": 0}, {"max_length": 1}, {"score_range": (5.0, 0.0)}, {"seed": -1}],
)  # fmt: skip
def test_a_wrong_option_is_refused_with_its_value(changes: dict[str, Any]) -> None:
    with pytest.raises(BcqError, match=next(iter(changes))) as caught:
        TuneOptions(**changes)
    assert caught.value.code == "E202"


def test_a_task_that_the_architecture_cannot_do_is_refused(
    base: QuantizedBase, encoder: tuple[Path, QuantizedBase], tmp_path: Path
) -> None:
    with pytest.raises(BcqError, match="needs an encoder") as caught:
        tune(base, lines(tmp_path, ["a\tb\t1"], "a.tsv"), options=quick(task="similarity"))
    assert caught.value.code == "E401"
    with pytest.raises(BcqError, match="needs a decoder"):
        tune(encoder[1], lines(tmp_path, ROWS), options=quick())
    with pytest.raises(BcqError, match="teacher"):
        tune(encoder[1], lines(tmp_path, ["a"], "a.txt"), options=quick(task="distill"))


def test_changed_codes_are_found_before_training(base: QuantizedBase, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(base.folder, tmp_path / "base")
    entry = base.checkpoint.entry("transformer.wpe.weight.codes")
    with (tmp_path / "base" / "model.safetensors").open("r+b") as file:
        file.seek(entry.offset)
        file.write(b"\x55\xaa")
    with pytest.raises(BcqError, match=r"wpe.*recorded hash") as caught:
        tune(tmp_path / "base", lines(tmp_path, ROWS), options=quick())
    assert caught.value.code == "E109"


def test_training_that_diverges_says_so(base: QuantizedBase, tmp_path: Path) -> None:
    with pytest.raises(BcqError, match="diverged") as caught:
        tune(base, lines(tmp_path, ROWS), tmp_path / "e2e", options=quick(learning_rate=1e30))
    assert caught.value.code == "E106"


def test_every_pass_takes_each_example_once() -> None:
    drawn = [i for batch in batches([1] * 10, TuneOptions(batch_size=4, seed=3), 5) for i in batch]
    assert sorted(drawn) == sorted([*range(10), *range(10)])
    assert drawn != [i for batch in batches([1] * 10, TuneOptions(batch_size=4, seed=4), 5) for i in batch]
    assert list(batches([1, 2, 3], TuneOptions(batch_size=8), 1)) == [[0, 1, 2]]


def test_examples_of_like_size_come_together() -> None:
    sizes = [i % 100 for i in range(1000)]
    drawn = list(batches(sizes, TuneOptions(batch_size=8), 125))
    padding = sum(max(sizes[i] for i in batch) * len(batch) for batch in drawn) / sum(sizes)
    assert sorted(i for batch in drawn for i in batch) == list(range(1000))
    assert padding < 1.1
    assert [max(sizes[i] for i in batch) for batch in drawn[:32]] != sorted(
        max(sizes[i] for i in batch) for batch in drawn[:32]
    )


def test_the_command_trains_and_reports(
    base: QuantizedBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = lines(tmp_path, ROWS)
    words = ["tune", str(base.folder), "--data", str(data), "-o", str(tmp_path / "e2e"), "--steps", "2"]
    assert main([*words, "--json", "--quiet", "--dev", str(data)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["trained"] == 5120
    assert told["ratio"] == pytest.approx(891136 / 5120)
    assert {"start_nll", "dev_nll", "train_loss"} <= set(told)
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "trained 5,120 numbers, 174x fewer than the model's 891,136, in 2 updates" in captured.out
    assert "tune 2/2 update 2" in captured.err
    assert main(["tune", str(tmp_path / "no"), "--data", str(data), "-o", str(tmp_path / "x")]) == 3
    assert "E101" in capsys.readouterr().err


def test_the_python_interface_gives_the_adapter(base: QuantizedBase, tmp_path: Path) -> None:
    adapter = bcq.tune(base, lines(tmp_path, ROWS), steps=2, batch_size=4)
    assert isinstance(adapter, Adapter)
    assert adapter.name == "task"
    assert adapter.base_hash == base.base_hash


def test_help_and_other_verbs_do_not_import_torch() -> None:
    code = "import sys, bcq.cli; bcq.cli.parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_results_are_plain_data(base: QuantizedBase, tmp_path: Path) -> None:
    result = tune(base, lines(tmp_path, ROWS), options=quick(steps=1))
    assert isinstance(result, TuneResult)
    assert json.loads(json.dumps(dict(result.adapter.metadata))) == dict(result.adapter.metadata)
