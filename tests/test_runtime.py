# SPDX-License-Identifier: Apache-2.0
"""Sessions open by path with the library registered, and every refusal is one error that names the file."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from bcq import contract, runtime
from bcq.errors import BcqError, InputError
from bcq.kernels.core import Core
from bcq.packing import pack
from big_model import write_big_model
from nodes import activations, one_node, random_weight

WEIGHT = random_weight(48, 64, 3, 32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = one_node(contract.MATMUL, WEIGHT, dims=("m",))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    return tmp_path


def refused(call: object, *arguments: object) -> BcqError:
    with pytest.raises(BcqError) as caught:
        call(*arguments)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_folder_and_its_file_open_the_same_session(folder: Path) -> None:
    a = activations(2, 64)
    expected = Core.load().matmul(a, pack(WEIGHT)).tobytes()
    for path in (folder, folder / "model.onnx", str(folder)):
        session = runtime.session(path)
        assert isinstance(session, ort.InferenceSession)
        assert np.asarray(session.run(None, {"A": a})[0]).tobytes() == expected


def test_the_users_session_options_are_kept_and_may_be_used_again(folder: Path) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    for _ in range(2):
        session = runtime.session(folder, options)
        assert session.get_session_options().intra_op_num_threads == 1


def test_without_the_library_a_model_that_carries_no_functions_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"model\.onnx: onnxruntime refuses this model: .*BcqMatMul"):
        runtime.session(folder, with_library=False)


def test_a_path_that_does_not_exist_is_e101(tmp_path: Path) -> None:
    error = refused(runtime.session, tmp_path / "nothing")
    assert (error.code, error.exit_code) == ("E101", 3)
    assert "nothing: there is no such file or folder" in error.message


def test_a_folder_without_a_model_is_told_to_be_one(tmp_path: Path) -> None:
    error = refused(runtime.session, tmp_path)
    assert (error.code, error.exit_code) == ("E102", 3)
    assert "is a folder without a model, expected the folder of an export" in error.message


@pytest.mark.parametrize("content", [b"", b"hello, this is no model", b"\xff" * 100])
def test_a_file_that_is_no_onnx_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    error = refused(runtime.session, tmp_path)
    assert error.code in ("E102", "E103")
    assert "model.onnx" in error.message


def test_a_model_that_is_cut_short_is_refused(folder: Path) -> None:
    model = folder / "model.onnx"
    model.write_bytes(model.read_bytes()[:-700])
    assert refused(runtime.session, folder).code in ("E102", "E103")


def test_a_malformed_node_is_e109_and_named(tmp_path: Path) -> None:
    model = one_node(contract.MATMUL, WEIGHT, change={"bits": 9})
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    error = refused(runtime.session, tmp_path)
    assert error.code == "E109"
    assert "model.onnx: BcqMatMul 'the_node': bits: got 9, expected 1 to 8." in error.message


def test_short_weight_files_are_e103_and_missing_ones_e101(tmp_path: Path) -> None:
    model, _ = write_big_model(tmp_path)
    data = tmp_path / "model.onnx.data"
    with data.open("r+b") as file:
        file.truncate(5000)
    error = refused(runtime.session, model)
    assert (error.code, "model.onnx" in error.message) == ("E103", True)
    data.unlink()
    error = refused(runtime.session, model)
    assert (error.code, "model.onnx.data" in error.message) == ("E101", True)


def test_the_library_lies_beside_the_package_or_where_the_user_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert runtime.library_path().name == runtime.LIBRARY_NAME
    copy = Path(shutil.copy(runtime.library_path(), tmp_path / "mine.so"))
    monkeypatch.setenv("BCQ_LIBRARY", str(copy))
    assert runtime.library_path() == copy.resolve()
    monkeypatch.setenv("BCQ_LIBRARY", str(tmp_path / "none.so"))
    error = refused(runtime.library_path)
    assert (error.code, error.exit_code) == ("E603", 6)


def test_a_library_that_cannot_be_loaded_is_e603(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"\x7fELF, but not really")
    monkeypatch.setenv("BCQ_LIBRARY", str(broken))
    assert refused(runtime.session, folder).code == "E603"
    assert refused(Core.load).code == "E603"


def test_a_wrong_bcq_isa_stops_the_session_with_the_known_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BCQ_ISA", "avx9000")
    error = refused(runtime.session, folder)
    assert (error.code, error.exit_code) == ("E202", 2)
    assert error.message.startswith("BCQ_ISA: got 'avx9000', expected one of scalar, avx2,")


def test_bcq_isa_scalar_runs_the_scalar_kernel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCQ_ISA", "scalar")
    a = activations(2, 64)
    y = np.asarray(runtime.session(folder).run(None, {"A": a})[0])
    assert y.tobytes() == Core.load().matmul(a, pack(WEIGHT), kernel="scalar").tobytes()


@pytest.mark.parametrize("version", ["1.20.2", "1.9", "0.30.0", "1.17.3+cpu"])
def test_an_old_onnxruntime_is_refused(version: str) -> None:
    error = refused(runtime.check_onnxruntime, version)
    assert (error.code, f"got {version}, expected 1.21 or newer" in error.message) == ("E603", True)


@pytest.mark.parametrize("version", ["1.21.0", "1.31.1", "2.0.0", "1.100.0.dev20260101"])
def test_a_recent_onnxruntime_is_accepted(version: str) -> None:
    runtime.check_onnxruntime(version)


def test_running_a_model_imports_neither_torch_nor_onnx(folder: Path) -> None:
    program = (
        "import sys, bcq, numpy as np\n"
        "bcq.session(sys.argv[1]).run(None, {'A': np.zeros((1, 64), np.float32)})\n"
        "print([name for name in ('torch', 'transformers', 'onnx', 'onnx_ir') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
