# SPDX-License-Identifier: Apache-2.0
"""The passes on small nodes against every test case that ONNX has for its operators: nothing changes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from bcq import passes
from bcq.passes.work import Work
from bcq.progress import SILENT
from graphs import Quick

# One pass moves a rounding (x / sqrt v), and onnxruntime may then add in another order: the bound that ONNX's
# own tests have for float32.
RELATIVE, ABSOLUTE = 1e-3, 1e-7


def cases() -> Iterator[Any]:
    """Models of a few nodes with inputs: every operator, with odd shapes and attributes."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, on purpose: overflows and divisions by zero
        yield from (case for case in collect_testcases(None) if case.model is not None)


def test_onnx_test_cases_compute_what_they_did() -> None:
    changed = 0
    for case in cases():
        model = ir.from_proto(case.model)
        before = [node.op_type for node in model.graph]
        for step in passes.TIDY + passes.FUSE + passes.SPLIT:
            step(model, Work(Quick(), SILENT))
        if before != [node.op_type for node in model.graph]:
            changed += 1
            check(case, ir.to_proto(model).SerializeToString())
    assert changed > 200  # a case that no pass touches proves little


def check(case: Any, changed: bytes) -> None:
    """Both models on the case's own inputs; a case that onnxruntime does not know proves nothing."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        plain = ort.InferenceSession(case.model.SerializeToString(), options)
    except Exception:  # onnxruntime's classes share no base of their own
        return
    session = ort.InferenceSession(changed, options)
    for inputs, _ in case.data_sets:
        names = [value.name for value in plain.get_inputs()]
        feeds = {
            name: np.asarray(value) if np.isscalar(value) else value
            for name, value in zip(names, inputs, strict=False)
        }
        for got, expected in zip(session.run(None, feeds), plain.run(None, feeds), strict=True):
            same(got, expected, case.name)


def same(got: Any, expected: Any, name: str) -> None:
    """Arrays, sequences of them, or nothing."""
    if isinstance(expected, list):
        assert len(got) == len(expected), name
        for one, other in zip(got, expected, strict=True):
            same(one, other, name)
    elif isinstance(expected, np.ndarray) and np.issubdtype(expected.dtype, np.number):
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype), name
        np.testing.assert_allclose(got, expected, RELATIVE, ABSOLUTE, err_msg=name)
    else:
        np.testing.assert_array_equal(got, expected, err_msg=name)
