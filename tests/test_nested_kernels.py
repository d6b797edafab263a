# SPDX-License-Identifier: Apache-2.0
"""A weight that reads the first planes of wider codes gives the bits that it gives alone: kernels, nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from bcq import contract
from bcq.bcq import BcqWeight
from bcq.exporting import functions
from bcq.kernels.core import Core
from bcq.packing import PackedWeight, pack, unpack
from kernel_classes import level
from nodes import Array, activations, among_planes, one_node, open_session, random_weight

CORE = Core.load()
FLAGS = CORE.detected_flags()
MATMUL = [row.name for row in CORE.kernels(contract.MATMUL.name) if not row.flags & ~FLAGS]
GATHER = [row.name for row in CORE.kernels(contract.GATHER.name) if not row.flags & ~FLAGS]
SIZES = [(50, 100, 32), (33, 257, 257), (70, 416, 128)]
BITS = [(1, 2), (2, 4), (3, 4), (2, 5), (4, 8), (7, 8)]  # read, stored
BOTH = pytest.mark.parametrize("op", [contract.MATMUL, contract.GATHER], ids=lambda op: op.name)


def weights(bits: int, planes: int) -> list[tuple[PackedWeight, PackedWeight]]:
    """Each weight alone and among planes that it does not read."""
    made = [
        random_weight(rows, inputs, bits, group, offset)
        for rows, inputs, group in SIZES
        for offset in (False, True)
    ]
    return [(pack(weight), among_planes(weight, planes)) for weight in made]


def multiply(kernel: str, a: Array, weight: PackedWeight, **options: Any) -> bytes:
    return CORE.matmul(a, weight, kernel=kernel, accuracy_level=level(kernel), **options).tobytes()


def feeds(op: contract.Op) -> dict[str, Any]:
    """Something for the first input of a node with ``WEIGHT``."""
    return {"A": activations(3, 100)} if op is contract.MATMUL else {"indices": np.array([0, 49, -50, 7])}


WEIGHT = random_weight(50, 100, 2, 32, offset=True)
WIDE = among_planes(WEIGHT, 4)


def node(op: contract.Op, weight: PackedWeight | BcqWeight = WIDE, **options: Any) -> onnx.ModelProto:
    first = np.float32 if op is contract.MATMUL else np.int64
    return one_node(op, weight, first, ("m",), **options)


@pytest.mark.parametrize("kernel", MATMUL)
@pytest.mark.parametrize(("bits", "planes"), BITS)
def test_each_matmul_kernel_skips_the_planes_that_it_does_not_read(
    kernel: str, bits: int, planes: int
) -> None:
    for alone, among in weights(bits, planes):
        for tokens, parts in ((1, 1), (3, 2), (37, 3)):
            a = activations(tokens, alone.inputs)
            assert multiply(kernel, a, among, parts=parts) == multiply(kernel, a, alone, parts=parts)


@pytest.mark.parametrize("kernel", MATMUL)
def test_a_resident_copy_holds_only_the_planes_that_are_read(kernel: str) -> None:
    for alone, among in weights(2, 4):
        copy = CORE.make_resident(among, kernel=kernel)
        assert np.array_equal(copy, CORE.make_resident(alone, kernel=kernel))
        a = activations(1, alone.inputs)
        assert multiply(kernel, a, among, resident=copy) == multiply(kernel, a, alone)


@pytest.mark.parametrize("kernel", GATHER)
@pytest.mark.parametrize(("bits", "planes"), BITS)
def test_each_gather_kernel_skips_the_planes_that_it_does_not_read(
    kernel: str, bits: int, planes: int
) -> None:
    for alone, among in weights(bits, planes):
        indices = np.arange(-alone.rows, alone.rows)
        expected = CORE.gather(indices, alone, kernel=kernel)
        assert CORE.gather(indices, among, kernel=kernel).tobytes() == expected.tobytes()


def test_unpacking_takes_the_first_planes() -> None:
    assert (WIDE.bits, WIDE.planes, WIDE.format_version) == (2, 4, contract.NESTED_FORMAT_VERSION)
    assert np.array_equal(unpack(WIDE).words, WEIGHT.words)


@BOTH
@pytest.mark.parametrize("where", ["mapped", "resident"])
def test_a_node_gives_the_bits_of_one_with_codes_of_its_own(op: contract.Op, where: str) -> None:
    entries = {"bcq.weights": where}
    got = open_session(node(op), 1, entries).run(None, feeds(op))[0]
    assert got.tobytes() == open_session(node(op, WEIGHT), 1, entries).run(None, feeds(op))[0].tobytes()


@BOTH
@pytest.mark.parametrize("opset", [13, 18, 21])
def test_the_function_inside_the_file_takes_the_first_planes_too(op: contract.Op, opset: int) -> None:
    outputs = []
    for weight in (WIDE, pack(WEIGHT)):
        model = node(op, weight)
        model.opset_import[0].version = opset
        model.functions.extend(
            ir.serde.serialize_function(function) for function in functions.functions(opset)
        )
        outputs.append(np.asarray(next(iter(ReferenceEvaluator(model).run(None, feeds(op))))))
    assert outputs[0].tobytes() == outputs[1].tobytes()


def refusal(model: onnx.ModelProto) -> str:
    with pytest.raises(Exception, match=r"BcqMatMul|BcqGather") as caught:
        open_session(model)
    return str(caught.value)


@BOTH
def test_more_planes_than_bits_need_the_nested_format(op: contract.Op) -> None:
    message = refusal(node(op, change={"format_version": contract.FORMAT_VERSION}))
    assert "codes shape: got [4, 4, 4, 16], expected [4, 4, 2, 16]" in message


@BOTH
@pytest.mark.parametrize("bits", [0, 5, 9])
def test_a_node_that_would_read_planes_which_are_not_there_is_refused(op: contract.Op, bits: int) -> None:
    assert "expected" in refusal(node(op, change={"bits": bits}))


@BOTH
def test_the_nested_format_is_refused_where_all_planes_are_read(op: contract.Op) -> None:
    message = refusal(node(op, change={"bits": 4}))
    assert "format_version: got 2, expected 1 where a node reads all planes" in message


@BOTH
def test_more_than_eight_planes_are_refused(op: contract.Op) -> None:
    codes = np.zeros((4, 4, 9, 16), np.uint32)
    message = refusal(node(op, replace(WIDE, codes=codes)))
    assert "codes shape: got [4, 4, 9, 16], expected [4, 4, 8, 16] or fewer planes" in message


@BOTH
@pytest.mark.parametrize(("plane", "row", "word"), [(3, 15, 0), (2, 0, 3)])
def test_padding_of_planes_that_are_not_read_must_be_zero_too(
    op: contract.Op, plane: int, row: int, word: int
) -> None:
    codes = WIDE.codes.copy()
    codes[3, word, plane, row] |= np.uint32(1 << 31)
    assert "codes padding: got a set bit" in refusal(node(op, replace(WIDE, codes=codes)))
