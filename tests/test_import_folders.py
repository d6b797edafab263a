# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other programs as quantized bases: the same numbers, and then the whole chain."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

pytest.importorskip("torch", reason="importing a folder needs the packages for compiling")

import foreign
from bcq import packing
from bcq.bcq import BcqWeight
from bcq.errors import BcqError
from bcq.export import export
from bcq.files.base import QuantizedBase
from bcq.files.integrity import check_integrity
from bcq.files.manifest import check_manifest
from bcq.importers.run import ImportResult, import_model
from bcq.parity import verify
from foreign import Grid, Tensors
from tiny_models import save


def gptq_v2(grid: Grid) -> Tensors:
    return foreign.gptq(grid, "gptq_v2")


def gptq_model(folder: Path, kind: str = "opt", bits: int = 4, version: str = "gptq", **options: Any) -> Any:
    """A tiny model quantized as GPTQ, and its grids."""
    save(kind, folder)
    pack: Callable[[Grid], Tensors] = foreign.gptq if version == "gptq" else gptq_v2
    settings = {"bits": bits, "group_size": 32, **options}
    grids = foreign.quantize_as(folder, pack, turned=kind == "gpt2", **settings)
    section = {"quant_method": "gptq", "bits": bits, "group_size": 32, "checkpoint_format": version}
    foreign.describe(folder, **section, desc_act=False)
    return grids


def awq_model(folder: Path, **options: Any) -> dict[str, Grid]:
    """A tiny model quantized as AWQ, and its grids."""
    save("opt", folder)
    grids = foreign.quantize_as(folder, foreign.awq, bits=4, group_size=32, **options)
    section = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "GEMM", "zero_point": True}
    foreign.describe(folder, **section)
    return grids


def check_equal(base: Path, grids: dict[str, Grid]) -> None:
    opened = QuantizedBase.open(base)
    assert set(opened.names()) == set(grids)
    for name, grid in grids.items():
        weight = packing.unpack(opened.packed(name))
        assert np.array_equal(weight.dequantize().astype(np.float64), grid.dense()), name


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_symmetric_gptq_checkpoint_keeps_every_weight(tmp_path: Path, bits: int, version: str) -> None:
    grids = gptq_model(tmp_path / "gptq", bits=bits, version=version, symmetric=True)
    result = import_model(tmp_path / "gptq", tmp_path / "base")
    assert result.exact
    assert (result.kind, len(result.matrices)) == ("gptq", 12)
    check_equal(tmp_path / "base", grids)


@pytest.mark.parametrize("make", [gptq_model, awq_model])
def test_other_zero_points_take_one_plane_more_or_are_refused(tmp_path: Path, make: Any) -> None:
    grids = make(tmp_path / "source")
    with pytest.raises(BcqError, match="--inexact plane: exact") as caught:
        import_model(tmp_path / "source", tmp_path / "base")
    assert caught.value.code == "E403"
    assert not (tmp_path / "base").exists()
    result = import_model(tmp_path / "source", tmp_path / "base", inexact="plane")
    assert result.exact
    assert {matrix.bits for matrix in result.matrices} == {5}
    check_equal(tmp_path / "base", grids)


def test_rounding_keeps_the_planes_and_reports_the_error_that_was_measured(tmp_path: Path) -> None:
    grids = awq_model(tmp_path / "awq")
    result = import_model(tmp_path / "awq", tmp_path / "base", inexact="round")
    assert not result.exact
    opened = QuantizedBase.open(tmp_path / "base")
    for matrix in result.matrices:
        grid = grids[matrix.name]
        missed = packing.unpack(opened.packed(matrix.name)).dequantize() - grid.dense()
        assert matrix.bits == 4
        assert np.isclose(matrix.relative_error, np.square(missed).sum() / np.square(grid.dense()).sum())
        assert np.abs(missed).max() <= matrix.worst * grid.scales.astype(np.float64).max()
        assert 0 < matrix.worst < 8.5 * 2**-11  # half a unit in the last place of the largest offset


def test_conv1d_matrices_are_stored_turned_and_stay_so(tmp_path: Path) -> None:
    grids = gptq_model(tmp_path / "gptq", "gpt2", symmetric=True)
    import_model(tmp_path / "gptq", tmp_path / "base")
    check_equal(tmp_path / "base", grids)
    opened = QuantizedBase.open(tmp_path / "base")
    assert opened.matrices["transformer.h.0.attn.c_attn.weight"].transposed


def test_inputs_that_fill_no_last_group_are_kept(tmp_path: Path) -> None:
    grids = gptq_model(tmp_path / "gptq", "llama", symmetric=True)  # 72 and 136 inputs in groups of 32
    import_model(tmp_path / "gptq", tmp_path / "base")
    check_equal(tmp_path / "base", grids)


def test_biases_of_zeros_that_the_model_does_not_have_are_dropped_and_others_refused(tmp_path: Path) -> None:
    grids = gptq_model(tmp_path / "gptq", "llama", symmetric=True)
    name = "model.layers.0.self_attn.q_proj.bias"
    change_tensors(tmp_path / "gptq", lambda tensors: tensors.update({name: np.zeros(72, np.float16)}))
    import_model(tmp_path / "gptq", tmp_path / "base")
    check_equal(tmp_path / "base", grids)
    assert name not in QuantizedBase.open(tmp_path / "base").dense_names()
    change_tensors(tmp_path / "gptq", lambda tensors: tensors.update({name: np.ones(72, np.float16)}))
    with pytest.raises(BcqError, match=r"q_proj\.bias' is not zero") as caught:
        import_model(tmp_path / "gptq", tmp_path / "base")
    assert caught.value.code == "E401"


def test_transformers_opens_an_imported_base_on_its_packed_codes(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from bcq.nn.modules import BcqConv1D

    grids = gptq_model(tmp_path / "gptq", "gpt2", symmetric=True)
    import_model(tmp_path / "gptq", tmp_path / "base")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    layer = model.transformer.h[0].attn.c_attn
    assert isinstance(layer, BcqConv1D)
    with torch.no_grad():
        got = (layer(torch.eye(64)) - layer.bias).numpy().T
    # One product and one sum with a bias below 1 in float32: each rounds by at most 2^-24 of sizes below 2.
    assert np.abs(got - grids["transformer.h.0.attn.c_attn.weight"].dense()).max() < 80 * 2.0**-24


def test_one_group_a_row_and_zero_points_that_are_left_out(tmp_path: Path) -> None:
    grids = gptq_model(tmp_path / "gptq", symmetric=True, group_size=4096)
    foreign.describe(tmp_path / "gptq", quant_method="gptq", bits=4, group_size=-1, desc_act=True)
    file = tmp_path / "gptq" / "model.safetensors"
    tensors = {name: value for name, value in load_file(file).items() if not name.endswith(".qzeros")}
    save_file(tensors, file)
    import_model(tmp_path / "gptq", tmp_path / "base")
    check_equal(tmp_path / "base", grids)
    assert QuantizedBase.open(tmp_path / "base").config["quantization_config"]["group_size"] == 0


def test_the_older_description_of_gptq_is_read(tmp_path: Path) -> None:
    grids = gptq_model(tmp_path / "gptq", symmetric=True)
    config = json.loads((tmp_path / "gptq/config.json").read_text())
    section = config.pop("quantization_config")
    (tmp_path / "gptq/config.json").write_text(json.dumps(config))
    (tmp_path / "gptq/quantize_config.json").write_text(json.dumps({**section, "quant_method": None}))
    with pytest.raises(BcqError, match="is not quantized"):
        import_model(tmp_path / "gptq", tmp_path / "base")
    (tmp_path / "gptq/quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32}))
    import_model(tmp_path / "gptq", tmp_path / "base")
    check_equal(tmp_path / "base", grids)


def test_a_zero_point_of_zero_in_version_1_needs_the_program_that_borrowed(tmp_path: Path) -> None:
    def borrowed(grid: Grid) -> Tensors:
        """Zero-points less one by subtracting whole words, as GPTQModel does."""
        made = gptq_v2(grid)
        ones = np.uint32(0x11111111)
        return {**made, "qzeros": (made["qzeros"].view(np.uint32) - ones).view(np.int32)}

    folder = save("opt", tmp_path / "gptq")
    grids = foreign.quantize_as(folder, borrowed, bits=4, group_size=32)
    for index, grid in enumerate(grids.values()):
        grid.zeros[:, index % 2] = 0
    foreign.rewrite(save("opt", folder), lambda name, _: None if name not in grids else {
        f"{name.removesuffix('.weight')}.{part}": tensor for part, tensor in borrowed(grids[name]).items()
    })  # fmt: skip
    section = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    foreign.describe(folder, **section)
    with pytest.raises(BcqError, match="some programs read as a zero-point of 16 and some as 0"):
        import_model(folder, tmp_path / "base", inexact="plane")
    foreign.describe(folder, **section, meta={"quantizer": ["gptqmodel:5.0"]})
    import_model(folder, tmp_path / "base", inexact="plane")
    check_equal(tmp_path / "base", grids)


class Planes:
    """Random signs, alphas for several precisions and offsets of one matrix ``[N, K]``."""

    def __init__(self, rows: int, inputs: int, precisions: tuple[int, ...], seed: int) -> None:
        random = np.random.default_rng(seed)
        groups = inputs // 32
        self.signs = random.choice([-1, 1], (max(precisions), rows, inputs))
        self.alpha = {b: random.uniform(0.01, 0.02, (groups, b, rows)).astype(np.float16) for b in precisions}
        self.beta = {b: random.uniform(-0.01, 0.01, (groups, rows)).astype(np.float16) for b in precisions}

    def dense(self, bits: int) -> NDArray[np.float32]:
        """Plane by plane, then the offset, in float32, as the format means it."""
        group_of = np.arange(self.signs.shape[2]) // 32
        total = np.zeros(self.signs.shape[1:], np.float32)
        for plane in range(bits):
            total += self.alpha[bits][group_of, plane].T.astype(np.float32) * self.signs[plane]
        total += self.beta[bits][group_of].T.astype(np.float32)
        return total


def plane_model(folder: Path, pack: Callable[[Planes], Tensors], precisions: tuple[int, ...]) -> Any:
    matrices: dict[str, Planes] = {}

    def change(name: str, values: NDArray[Any]) -> Tensors | None:
        if "embed" in name or "lm_head" in name:
            return None
        matrices[name] = Planes(values.shape[0], values.shape[1], precisions, len(matrices))
        stem = name.removesuffix(".weight")
        return {f"{stem}.{part}": tensor for part, tensor in pack(matrices[name]).items()}

    foreign.rewrite(save("opt", folder), change)
    return matrices


def any_bcq(planes: Planes) -> Tensors:
    """As AnyBCQ saves: one set of factors a precision, and a q_bias that nobody fills."""
    made: Tensors = {"qweight": foreign.plane_words(planes.signs)}
    made["q_bias"] = np.full((planes.signs.shape[2] // 32, planes.signs.shape[1]), np.nan, np.float16)
    for bits, alpha in planes.alpha.items():
        made |= {f"alpha_{bits}": alpha, f"beta_{bits}": planes.beta[bits]}
    return made


def lut_gemm(planes: Planes) -> Tensors:
    """LUT-GEMM's arrays."""
    words = foreign.plane_words(planes.signs)
    return {
        "qweight": words,
        "alpha": planes.alpha[len(planes.signs)],
        "q_bias": planes.beta[len(planes.signs)],
    }


@pytest.mark.parametrize("bits", [2, 3, None])
def test_any_precision_of_an_anybcq_checkpoint_keeps_its_factors(tmp_path: Path, bits: int | None) -> None:
    matrices = plane_model(tmp_path / "any", any_bcq, (2, 3, 4))
    path = tmp_path / "any/config.json"
    described = {"seed_precision": 2, "parent_precision": 4, "group_size": 32, "arch_config": {}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "anybcq": described}))
    result = import_model(tmp_path / "any", tmp_path / "base", bits=bits)
    assert (result.kind, result.exact) == ("anybcq", True)
    opened = QuantizedBase.open(tmp_path / "base")
    for name, planes in matrices.items():
        weight = packing.unpack(opened.packed(name))
        assert weight.bits == (bits or 4)
        assert np.array_equal(weight.dequantize(), planes.dense(bits or 4))
    assert "anybcq" not in opened.config
    with pytest.raises(BcqError, match="got 5, the checkpoint has 2 to 4"):
        import_model(tmp_path / "any", tmp_path / "other", bits=5)


def test_the_layout_of_lut_gemm_is_told_by_its_tensors(tmp_path: Path) -> None:
    matrices = plane_model(tmp_path / "lut", lut_gemm, (3,))
    result = import_model(tmp_path / "lut", tmp_path / "base")
    assert (result.kind, result.exact) == ("lut-gemm", True)
    opened = QuantizedBase.open(tmp_path / "base")
    for name, planes in matrices.items():
        assert np.array_equal(packing.unpack(opened.packed(name)).dequantize(), planes.dense(3))


def test_an_imported_base_is_exported_and_verified_like_any_other(tmp_path: Path) -> None:
    gptq_model(tmp_path / "gptq", "bert", symmetric=True)
    import_model(tmp_path / "gptq", tmp_path / "base", command=["bcq", "import", "gptq"])
    assert check_manifest(tmp_path / "base") == []
    assert check_integrity(tmp_path / "base").ok
    assert "pooler.dense.weight" not in QuantizedBase.open(tmp_path / "base").names()  # nobody reads it
    exported = export(tmp_path / "base", tmp_path / "out")
    kept = [record for record in exported.report.matrices if not record.packed]
    assert {record.requested for record in kept} <= {True}  # dense in the source: no failure of the export
    assert exported.report.packed_share == 1.0
    assert verify(tmp_path / "out").ok


def test_the_same_import_gives_the_same_bytes(tmp_path: Path) -> None:
    gptq_model(tmp_path / "gptq", symmetric=True)
    for name in ("one", "two"):
        import_model(tmp_path / "gptq", tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_the_result_says_what_was_taken_over(tmp_path: Path) -> None:
    gptq_model(tmp_path / "gptq", symmetric=True)
    result: ImportResult = import_model(tmp_path / "gptq", tmp_path / "base")
    data = json.loads(json.dumps(result.to_dict()))
    assert (data["exact"], data["format"], data["packed"]) == (True, "gptq", 12)
    assert data["bits_per_weight"] == 4 + 5 * 16 / 32
    assert {row["relative_error"] for row in data["matrices"] if row["bits"]} == {0.0}


def change_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def first(tensors: Tensors, part: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(f".{part}"))


def replaced(part: str, make: Callable[[NDArray[Any]], NDArray[Any] | None]) -> Callable[[Path], None]:
    """An attack on the first tensor whose name ends in `part`."""

    def attack(folder: Path) -> None:
        def change(tensors: Tensors) -> None:
            name = first(tensors, part)
            made = make(tensors.pop(name))
            if made is not None:
                tensors[name] = np.ascontiguousarray(made)

        change_tensors(folder, change)

    return attack


def described(**entries: Any) -> Callable[[Path], None]:
    """An attack on the description."""

    def attack(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config["quantization_config"] = {**config["quantization_config"], **entries}
        path.write_text(json.dumps(config))

    return attack


def no_number(scales: NDArray[Any]) -> NDArray[Any]:
    scales = scales.copy()
    scales[0, 5] = np.nan
    return scales


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def stray(folder: Path) -> None:
    grid = Grid(32, 64, symmetric=True)
    parts = {f"model.decoder.layers.9.fc1.{part}": tensor for part, tensor in foreign.gptq(grid).items()}
    change_tensors(folder, lambda tensors: tensors.update(parts))


def twice(folder: Path) -> None:
    name = "model.decoder.layers.0.fc1.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: np.zeros((128, 64), np.float16)}))


def nan_norm(folder: Path) -> None:
    name = "model.decoder.final_layer_norm.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: np.full(64, np.nan, np.float32)}))


def not_an_object(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": 4}))


ATTACKS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "cut short": (cut, "E103", "cut short"),
    "no scales": (replaced("scales", lambda _: None), "E107", "scales"),
    "no levels anywhere": (lambda f: change_tensors(f, lambda t: [t.pop(n) for n in [*t] if "qweight" in n]),
                           "E107", "qweight"),
    "scales of another shape": (replaced("scales", lambda s: s[:, :-1]), "E103", "scales"),
    "scales of another rank": (replaced("scales", lambda s: s[0]), "E103", "scales"),
    "scales of another group count": (replaced("scales", lambda s: s[:1]), "E103", "scales"),
    "scales that are integers": (replaced("scales", lambda s: s.astype(np.int32)), "E102", "scales"),
    "scales that are NaN": (replaced("scales", no_number), "E106", "output 5, group 0"),
    "levels of another type": (replaced("qweight", lambda w: w.astype(np.float32)), "E102", "qweight"),
    "levels cut in inputs": (replaced("qweight", lambda w: w[:-1]), "E103", "qweight"),
    "levels cut in outputs": (replaced("qweight", lambda w: w[:, :-1]), "E103", "scales"),
    "levels of no size": (replaced("qweight", lambda w: w[:0]), "E103", "qweight"),
    "zero-points of another shape": (replaced("qzeros", lambda z: z[:, :-1]), "E103", "qzeros"),
    "zero-points of another type": (replaced("qzeros", lambda z: z.astype(np.int8)), "E102", "qzeros"),
    "another order of inputs": (replaced("g_idx", lambda g: g[::-1]), "E401", "desc_act"),
    "groups out of range": (replaced("g_idx", lambda g: g + 7), "E401", "g_idx"),
    "an order of another length": (replaced("g_idx", lambda g: g[:-1]), "E103", "qweight"),
    "an order of floats": (replaced("g_idx", lambda g: g.astype(np.float32)), "E102", "g_idx"),
    "a matrix of another model": (stray, "E107", "layers.9.fc1.weight"),
    "a matrix twice": (twice, "E103", "both dense and quantized"),
    "a norm that is NaN": (nan_norm, "E106", "final_layer_norm"),
    "a missing bias": (replaced("fc1.bias", lambda _: None), "E107", "fc1.bias"),
    "bits that nobody packs": (described(bits=5), "E401", "bits is 5"),
    "bits as text": (described(bits="4"), "E102", "bits is '4'"),
    "other bits than stored": (described(bits=8), "E103", "qweight"),
    "another group size": (described(group_size=64), "E103", "scales"),
    "a group size of zero": (described(group_size=0), "E103", "scales"),
    "an unknown format": (described(checkpoint_format="marlin"), "E401", "marlin"),
    "an older marlin": (described(is_marlin_format=True), "E401", "marlin"),
    "another packing": (described(pack_dtype="int64"), "E401", "pack_dtype"),
    "an unknown method": (described(quant_method="bitsandbytes"), "E401", "bitsandbytes"),
    "a base": (described(quant_method="bcq"), "E401", "bcq"),
    "no object": (not_an_object, "E102", "quantization_config"),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "model"
    gptq_model(folder, symmetric=True)
    return folder


@pytest.mark.parametrize("name", ATTACKS)
def test_a_bad_checkpoint_is_refused_by_name_and_nothing_is_written(
    good: Path, tmp_path: Path, name: str
) -> None:
    attack, code, text = ATTACKS[name]
    folder = Path(shutil.copytree(good, tmp_path / "model"))
    attack(folder)
    with pytest.raises(BcqError) as caught:
        import_model(folder, tmp_path / "base")
    assert caught.value.code == code, caught.value
    assert text in caught.value.message
    assert "\n" not in caught.value.message
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_groups_of_sixteen_are_refused_with_the_reason(tmp_path: Path) -> None:
    save("opt", tmp_path / "gptq")
    foreign.quantize_as(tmp_path / "gptq", foreign.gptq, bits=4, group_size=16, symmetric=True)
    foreign.describe(tmp_path / "gptq", quant_method="gptq", bits=4, group_size=16)
    with pytest.raises(BcqError, match="groups of 16 inputs; the operators take multiples of 32"):
        import_model(tmp_path / "gptq", tmp_path / "base")


@pytest.mark.parametrize(
    ("section", "text"),
    [({"version": "gemv"}, "'gemv'"), ({"bits": 8}, "bits is 8"), ({"group_size": 0}, "group_size is 0")],
)
def test_other_variants_of_awq_are_refused(tmp_path: Path, section: dict[str, Any], text: str) -> None:
    awq_model(tmp_path / "awq")
    described(**section)(tmp_path / "awq")
    with pytest.raises(BcqError, match=text):
        import_model(tmp_path / "awq", tmp_path / "base")


def test_a_dense_model_and_a_missing_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(BcqError, match="is not quantized"):
        import_model(save("opt", tmp_path / "dense"), tmp_path / "base")
    with pytest.raises(BcqError, match="does not exist"):
        import_model(tmp_path / "nothing", tmp_path / "base")
    gptq_model(tmp_path / "gptq", symmetric=True)
    with pytest.raises(BcqError, match="only a checkpoint of several precisions"):
        import_model(tmp_path / "gptq", tmp_path / "base", bits=3)


def test_a_weight_of_its_own_is_what_the_words_say() -> None:
    """The packers above and the oracle agree on a matrix that fits on one line."""
    signs = np.ones((1, 1, 32), int)
    signs[0, 0, 0] = -1
    words = foreign.plane_words(signs).view(np.uint32)
    weight = BcqWeight(words.reshape(1, 1, 1), np.ones((1, 1, 1), np.float16), None, 32, 32)
    assert weight.dequantize()[0].tolist() == [-1.0] + [1.0] * 31
