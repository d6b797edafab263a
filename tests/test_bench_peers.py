# SPDX-License-Identifier: Apache-2.0
"""Peers of the bench: each computes what its weights stand for, or says why it cannot take part."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bcq.bench import ggml_peer
from bcq.bench.contender import ERRORS, Contender
from bcq.bench.contenders import dense, nbits
from bcq.bench.ggml_peer import KINDS, ggml, random_blocks
from bcq.bench.openvino_peer import openvino_int4
from bcq.bench.torch_peer import torch_int8

ROWS, INPUTS = 128, 512


def error(contender: Contender, folder: Path, tokens: int) -> float:
    """Relative error of the second of two copies."""
    random = np.random.default_rng(0)
    copies = [contender.draw(random) for _ in range(2)]
    a = random.standard_normal((tokens, INPUTS), dtype=np.float32)
    session = contender.prepare(copies, folder).session(a, 1)
    session.run()
    expected = a.astype(np.float64) @ copies[1].dense().astype(np.float64).T
    return float(np.linalg.norm(session.output(1) - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize(
    "make",
    [
        lambda: dense(ROWS, INPUTS),
        lambda: torch_int8(ROWS, INPUTS),
        *(
            lambda bits=bits, kind=kind: nbits(ROWS, INPUTS, bits, 32, kind)
            for bits in (2, 4, 8)
            for kind in ("int8", "float32")
        ),
        lambda: nbits(ROWS, INPUTS, 2, lut=True),
    ],
)
def test_peers_compute_what_their_weights_stand_for(
    tmp_path: Path, make: Callable[[], Contender], tokens: int
) -> None:
    contender = make()
    assert error(contender, tmp_path, tokens) <= ERRORS[contender.arithmetic]


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_computes_what_its_weights_stand_for(tmp_path: Path) -> None:
    assert error(openvino_int4(ROWS, INPUTS), tmp_path, 3) <= ERRORS["int8"]


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
@pytest.mark.parametrize("kind", KINDS)
def test_ggml_computes_what_its_weights_stand_for(tmp_path: Path, kind: str) -> None:
    assert error(ggml(kind, ROWS, INPUTS), tmp_path, 3) <= ERRORS["int8"]


def test_ternary_blocks_have_no_fourth_code_and_scales_are_where_they_belong() -> None:
    for kind in KINDS.values():
        blocks = random_blocks(np.random.default_rng(0), kind, 50)
        assert blocks.shape == (50, kind.size)
        for at in kind.scales:
            scales = blocks[:, at : at + 2].copy().view(np.float16)
            assert (scales > 0.004).all()
            assert (scales < 0.011).all()
    codes = random_blocks(np.random.default_rng(0), KINDS["TQ2_0"], 50)[:, :64]
    assert max(int((codes >> shift & 3).max()) for shift in (0, 2, 4, 6)) == 2


def test_a_missing_package_is_an_import_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> None:
        return None

    ggml_peer._library.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", nowhere)
    with pytest.raises(ImportError, match="No module named 'llama_cpp'"):
        ggml("Q4_0", ROWS, INPUTS)


def test_a_ggml_without_a_function_is_an_import_error_that_names_it() -> None:
    with pytest.raises(ImportError, match="no ggml_mul_mat"):
        ggml_peer._declare(object(), "ggml_mul_mat", "pppp")
