# SPDX-License-Identifier: Apache-2.0
"""Adapters: what a folder holds, which base it fits, and everything that is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

pytest.importorskip("torch", reason="a base is made with the packages for compiling")

from bcq.adapters.adapter import Adapter, Alphas
from bcq.adapters.folder import CONFIG_FILE, WEIGHTS_FILE
from bcq.cli import main
from bcq.errors import BcqError
from bcq.files.base import QuantizedBase
from bcq.packing import pack, unpack
from tiny_adapters import task, tiny_base

C_FC = "transformer.h.0.mlp.c_fc.weight"
BIAS = "transformer.h.0.mlp.c_fc.bias"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> QuantizedBase:
    return tiny_base(tmp_path_factory.mktemp("base"), offset=True)


@pytest.fixture
def folder(base: QuantizedBase, tmp_path: Path) -> Path:
    whole = task(base, "e2e", 1, parts=("alpha_1", "alpha_rest", "offset"))
    with_bias = replace(whole, dense={BIAS: np.ones(256, np.float32)})
    with_bias.save(tmp_path / "e2e")
    return tmp_path / "e2e"


def code_of(call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(BcqError) as caught:
        call()
    assert "\n" not in caught.value.message
    return caught.value.code, caught.value.message


def refusal(folder: Path) -> str:
    """The code of the error that opening gives, or nothing."""
    try:
        Adapter.open(folder)
    except BcqError as fault:
        return fault.code
    return ""


def change_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**config, **fields}))


def change_tensors(folder: Path, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None) -> None:
    file = folder / WEIGHTS_FILE
    kept = {**load_file(file), **tensors}
    config = json.loads((folder / CONFIG_FILE).read_text())
    notes = {"base_hash": config["base_hash"]} if metadata is None else metadata
    save_file({name: array for name, array in kept.items() if array is not None}, file, notes)


def test_what_is_saved_is_read_again_equal(folder: Path, base: QuantizedBase) -> None:
    adapter = Adapter.open(folder)
    expected = task(base, "e2e", 1, parts=("alpha_1", "alpha_rest", "offset"))
    assert (adapter.name, adapter.base_hash, adapter.metadata) == ("e2e", base.base_hash, expected.metadata)
    for name, array in expected.tensors().items():
        np.testing.assert_array_equal(adapter.tensors()[name], array)
    assert adapter.dense[BIAS].sum() == 256
    adapter.check_fits(base)


def test_the_same_adapter_gives_the_same_bytes(base: QuantizedBase, tmp_path: Path) -> None:
    for name in ("one", "two"):
        task(base, "e2e", 3).save(tmp_path / name)
    for file in (CONFIG_FILE, WEIGHTS_FILE, "MANIFEST.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_an_older_save_of_the_same_place_is_replaced(folder: Path, base: QuantizedBase) -> None:
    task(base, "newer", 2).save(folder)
    assert Adapter.open(folder).name == "newer"


def test_factors_are_applied_in_the_layout_of_the_operators(base: QuantizedBase) -> None:
    adapter = task(base, "e2e", 1, parts=("alpha_1", "alpha_rest", "offset"))
    packed = base.packed(C_FC)
    mine, plain = adapter.alphas[C_FC], unpack(packed)
    alpha = np.concatenate([mine.alpha_1[None], mine.alpha_rest])
    expected = pack(replace(plain, alpha=alpha, offset=mine.offset))
    applied = mine.applied(packed)
    for part, array in expected.tensors().items():
        np.testing.assert_array_equal(applied.tensors()[part], array)
    assert applied.codes is packed.codes


def test_another_base_is_refused_with_both_hashes(folder: Path, base: QuantizedBase, tmp_path: Path) -> None:
    other = tiny_base(tmp_path, bits=1)
    code, message = code_of(lambda: Adapter.open(folder).check_fits(other))
    assert code == "E301"
    assert base.base_hash in message
    assert other.base_hash in message


def test_a_matrix_or_tensor_that_the_base_lacks_is_refused(base: QuantizedBase) -> None:
    good = task(base, "e2e", 1)
    stranger = replace(good, alphas={"h.9.weight": good.alphas[C_FC]})
    assert code_of(lambda: stranger.check_fits(base)) == (
        "E302",
        "adapter 'e2e' does not fit: it has factors for 'h.9.weight', which the base holds no matrix of.",
    )
    dense = replace(good, dense={"h.9.bias": np.zeros(3, np.float32)})
    assert "'h.9.bias', which the base holds no dense tensor of" in code_of(lambda: dense.check_fits(base))[1]


def test_wrong_shapes_are_refused(base: QuantizedBase) -> None:
    good = task(base, "e2e", 1, parts=("alpha_1", "alpha_rest", "offset"))
    for change in (
        {"alpha_1": np.zeros((3, 2), np.float16)},
        {"alpha_rest": np.zeros((2, 256, 2), np.float16)},
        {"offset": np.zeros((256, 3), np.float16)},
    ):
        wrong = replace(good, alphas={C_FC: replace(good.alphas[C_FC], **change)})
        code, message = code_of(partial(wrong.check_fits, base))
        assert code == "E302"
        assert f"'{C_FC}.{next(iter(change))}' has shape" in message
    bias = replace(good, dense={BIAS: np.zeros(255, np.float32)})
    assert code_of(lambda: bias.check_fits(base))[1].endswith("has shape [255], expected [256].")


def test_offsets_for_a_base_without_are_refused(base: QuantizedBase, tmp_path: Path) -> None:
    plain = tiny_base(tmp_path)
    adapter = replace(task(base, "e2e", 1, parts=("alpha_1", "offset")), base_hash=plain.base_hash)
    assert "which has none in the base" in code_of(lambda: adapter.check_fits(plain))[1]


def test_values_that_are_not_finite_are_refused(base: QuantizedBase, folder: Path) -> None:
    bad = np.full((256, 2), np.inf, np.float16)
    assert code_of(lambda: Adapter("a", base.base_hash, {C_FC: Alphas(bad)}))[0] == "E106"
    bad[0, 0] = np.nan
    change_tensors(folder, {f"{C_FC}.alpha_1": bad})
    code, message = code_of(lambda: Adapter.open(folder))
    assert code == "E106"
    assert f"'{C_FC}.alpha_1' holds NaN" in message


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "x" * 65, "a b", "../x"])
def test_names_that_are_no_folder_names_are_refused(name: str, base: QuantizedBase, folder: Path) -> None:
    assert code_of(lambda: replace(task(base, "e2e", 1), name=name))[0] == "E202"
    change_config(folder, name=name)
    assert code_of(lambda: Adapter.open(folder))[0] == "E102"


def test_an_empty_adapter_is_refused(base: QuantizedBase) -> None:
    assert code_of(lambda: Adapter("a", base.base_hash, {}))[0] == "E304"


def test_metadata_that_is_no_json_is_refused_before_anything_is_written(
    base: QuantizedBase, tmp_path: Path
) -> None:
    adapter = replace(task(base, "e2e", 1), metadata={"loss": float("nan")})
    assert code_of(lambda: adapter.save(tmp_path / "e2e"))[0] == "E202"
    assert not (tmp_path / "e2e").exists()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"peft_type": "LORA"}, "E102"),
        ({"format_version": 2}, "E102"),
        ({"format_version": True}, "E102"),
        ({"base_hash": "9f31"}, "E102"),
        ({"base_hash": "0" * 64}, "E102"),  # the tensors are bound to another base
        ({"matrices": "all"}, "E102"),
        ({"matrices": [C_FC, C_FC]}, "E102"),
        ({"matrices": [1]}, "E102"),
        ({"matrices": []}, "E302"),  # tensors that nobody names
        ({"dense": [BIAS, "missing"]}, "E107"),
        ({"metadata": None}, "E102"),
    ],
)
def test_a_configuration_that_lies_is_refused(fields: dict[str, Any], code: str, folder: Path) -> None:
    change_config(folder, **fields)
    assert code_of(lambda: Adapter.open(folder))[0] == code


def test_a_matrix_without_alpha_1_is_refused(folder: Path) -> None:
    change_tensors(folder, {f"{C_FC}.alpha_1": None})
    assert code_of(lambda: Adapter.open(folder))[0] == "E107"


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "uint8"])
def test_factors_of_another_type_are_refused(dtype: str, folder: Path) -> None:
    change_tensors(folder, {f"{C_FC}.alpha_1": np.ones((256, 2), dtype)})
    assert code_of(lambda: Adapter.open(folder))[0] == "E302"


def test_tensors_of_another_save_are_refused(folder: Path) -> None:
    change_tensors(folder, {}, metadata={})
    assert "base_hash" in code_of(lambda: Adapter.open(folder))[1]


def test_a_pickle_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    trap = tmp_path / "run"
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Trap(str(trap))))
    assert code_of(lambda: Adapter.open(folder))[0] == "E104"
    assert not trap.exists()


class Trap:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


def test_missing_and_foreign_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    assert code_of(lambda: Adapter.open(tmp_path / "no"))[0] == "E101"
    assert code_of(lambda: Adapter.open(tmp_path))[0] == "E102"
    (folder / WEIGHTS_FILE).unlink()
    assert code_of(lambda: Adapter.open(folder))[0] == "E107"


def test_inspect_tells_what_an_adapter_holds_and_of_which_base(
    folder: Path, base: QuantizedBase, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["adapter"], told["base_hash"]) == ("e2e", base.base_hash)
    assert told["tensors"][f"{C_FC}.alpha_1"] == [256, 2]
    assert main(["inspect", str(folder)]) == 0
    assert f"{C_FC}.alpha_1 [256, 2]" in capsys.readouterr().out


def test_links_that_leave_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        (folder / file).rename(tmp_path / file)
        (folder / file).symlink_to(tmp_path / file)
        assert code_of(lambda: Adapter.open(folder))[0] == "E108"
        (folder / file).unlink()
        (tmp_path / file).rename(folder / file)


def test_every_cut_and_no_flip_of_the_files_escapes_a_clear_error(folder: Path) -> None:
    """A flip may change a value that stays finite, which only the manifest can tell; nothing else passes."""
    rng = np.random.default_rng(0)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        whole = (folder / file).read_bytes()
        for cut in rng.integers(0, len(whole) - 1, 20):
            (folder / file).write_bytes(whole[:cut])
            assert code_of(lambda: Adapter.open(folder))[0] in ("E102", "E103")
        for bit in rng.integers(0, 8 * len(whole), 100):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            (folder / file).write_bytes(flipped)
            assert refusal(folder) in ("", "E102", "E103", "E106", "E107", "E302")
        (folder / file).write_bytes(whole)
