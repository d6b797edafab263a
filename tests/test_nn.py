# SPDX-License-Identifier: Apache-2.0
"""Layers on packed codes compute what the dequantized weight computes, and so do their gradients."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bcq import packing
from bcq.bcq import BcqWeight, pack_bits
from bcq.errors import BcqError
from bcq.nn import BcqConv1D, BcqEmbedding, BcqLinear, PackedMatrix, Rule
from bcq.nn import decode as decoding
from bcq.nn.modules import packed_layer

# N, K, q, g, offset: ragged tiles, ragged words, ragged last group, one plane, row-wise
CASES = [(20, 72, 3, 72, False), (33, 100, 2, 32, True), (5, 40, 1, 40, False), (48, 64, 2, 64, True)]
EXACT = Rule(scaled=False)


def weight(rows: int, inputs: int, bits: int, group_size: int, offset: int) -> BcqWeight:
    rng = np.random.default_rng(rows)
    groups = -(-inputs // group_size)
    return BcqWeight(
        words=np.stack([pack_bits(rng.integers(0, 2, (rows, inputs))) for _ in range(bits)]),
        alpha=rng.normal(size=(bits, rows, groups)).astype(np.float16),
        offset=rng.normal(size=(rows, groups)).astype(np.float16) if offset else None,
        inputs=inputs,
        group_size=group_size,
    )


def matrix(*case: int, rule: Rule = EXACT) -> PackedMatrix:
    module = PackedMatrix.of(packing.pack(weight(*case)))
    module.rule = rule
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.numel() > 0)
    return module


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("with_kernels", [True, False])
def test_a_matrix_decodes_to_the_oracles_weights(
    case: tuple[int, ...], with_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_kernels:
        monkeypatch.setattr(decoding, "kernels", lambda: None)
    monkeypatch.setattr(decoding, "BLOCK_WEIGHTS", 16 * 128)  # several blocks even here
    expected = torch.from_numpy(weight(*case).dequantize())
    # At most 4 float32 sums of terms below 5: the order of summation may move the last bits.
    torch.testing.assert_close(matrix(*case).dense(), expected, rtol=0, atol=5 * 4 * 2.0**-23)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tokens", [3, 70])
def test_products_and_gradients_are_those_of_the_dequantized_weight(
    case: tuple[int, ...], tokens: int
) -> None:
    packed, torch_only = matrix(*case), matrix(*case, rule=Rule(scaled=False, by_kernel=False))
    torch.manual_seed(0)
    x, dy = torch.randn(tokens, case[1]), torch.randn(tokens, case[0])
    expected = through_dense(x, dy, packed)
    for module in (packed, torch_only):
        inputs = x.clone().requires_grad_()
        y = module.product(inputs)
        y.backward(dy)
        found = [y, inputs.grad, *(p.grad for p in module.parameters() if p.numel())]
        for got, wanted in zip(found, expected, strict=True):
            # Near-exact kernels have an RMS error of at most 1e-4 where terms do not cancel (ops/README.md).
            assert got is not None
            assert torch.linalg.norm(got - wanted) <= 2e-4 * torch.linalg.norm(wanted)


def through_dense(x: torch.Tensor, dy: torch.Tensor, module: PackedMatrix) -> list[torch.Tensor]:
    """Output and gradients of inputs and factors by autograd through W = sum alpha_i B_i + offset."""
    shape, inputs = module.layout, x.clone().requires_grad_()
    factors = [p.detach().clone().requires_grad_() for p in module.parameters() if p.numel()]
    planes = [factors[0]]
    if shape.bits > 1:
        planes += [factors[1][:, :, plane] for plane in range(shape.bits - 1)]
    dense = sum(
        decoding.spread(alpha, shape) * decoding.signs(module.codes, plane, shape, torch.float32)
        for plane, alpha in enumerate(planes)
    )
    if module.offset.numel():
        dense = dense + decoding.spread(factors[-1], shape)
    y = inputs @ torch.as_tensor(dense).T
    y.backward(dy)
    return [y, *(one.grad for one in (inputs, *factors) if one.grad is not None)]


@pytest.mark.parametrize("case", CASES)
def test_gradients_pass_gradcheck_in_float64(case: tuple[int, ...]) -> None:
    packed = matrix(*case).double()
    x = torch.randn(4, case[1], dtype=torch.float64, requires_grad=True)
    factors = [p for p in packed.parameters() if p.numel()]
    assert torch.autograd.gradcheck(lambda x, *_: packed.product(x), (x, *factors), fast_mode=True)
    packed.compute_dtype = torch.float64
    indices = torch.tensor([[0, 3, 3], [1, 4, 0]])
    assert torch.autograd.gradcheck(lambda *_: packed.rows(indices), factors, fast_mode=True)


def test_group_scaling_divides_the_gradients_of_factors_by_the_group_size() -> None:
    gradients = []
    for rule in (EXACT, Rule()):
        module = matrix(33, 100, 2, 32, True, rule=rule)
        x = torch.ones(2, 100, requires_grad=True)
        module.product(x).sum().backward()
        module.rows(torch.tensor([1, 1, 30])).sum().backward()
        gradients.append([p.grad for p in module.parameters()])
    for plain, scaled in zip(*gradients, strict=True):
        assert plain is not None
        torch.testing.assert_close(scaled, plain / 32)


def test_padding_has_no_gradient() -> None:
    module = matrix(20, 72, 3, 72, False)
    module.product(torch.randn(40, 72)).sum().backward()
    assert module.alpha_1.grad is not None
    assert torch.count_nonzero(module.alpha_1.grad[1, :, 4:]) == 0
    assert torch.count_nonzero(module.alpha_1.grad[1, :, :4]) == 4


def test_the_dense_weight_is_gone_after_the_forward_pass() -> None:
    module, saved = matrix(48, 64, 2, 64, False), []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        module.product(torch.randn(40, 64, requires_grad=True))
    assert {tuple(tensor.shape) for tensor in saved} <= {
        (40, 64), *(tuple(tensor.shape) for tensor in module.state_dict().values())
    }  # fmt: skip


def test_activations_are_not_kept_where_no_factor_is_trained() -> None:
    module, saved = matrix(48, 64, 2, 64, False), []
    module.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape), lambda t: t):
        module.product(torch.randn(40, 64, requires_grad=True))
    assert (40, 64) not in saved


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_activations_give_half_precision_results(dtype: torch.dtype) -> None:
    module = matrix(48, 64, 2, 64, True)
    x = torch.randn(40, 64)
    y = module.product(x.to(dtype).requires_grad_())
    y.sum().backward()
    assert y.dtype is dtype
    assert module.alpha_1.grad is not None
    assert module.alpha_1.grad.dtype is torch.float32
    # Weights and activations each carry a relative error of 2^-8 (bfloat16), independent of each other.
    wanted = x @ module.dense().T
    assert torch.linalg.norm(y.float() - wanted) <= 2 * 2.0**-8 * torch.linalg.norm(wanted)


def test_autocast_reaches_the_product() -> None:
    module = matrix(48, 64, 2, 64, True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module.product(torch.randn(40, 64)).dtype is torch.bfloat16


def test_threads_change_no_bit() -> None:
    module, x = matrix(1024, 256, 2, 32, False), torch.randn(8, 256)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append((module.dense(), module.product(x)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize(
    ("dense", "packed", "example"),
    [
        (nn.Linear(64, 48), BcqLinear, torch.randn(2, 7, 64)),
        (Conv1D(48, 64), BcqConv1D, torch.randn(2, 7, 64)),
        (nn.Embedding(48, 64), BcqEmbedding, torch.tensor([[3, 0], [47, 3]])),
    ],
)
def test_a_layer_becomes_packed_in_place(dense: nn.Module, packed: type, example: torch.Tensor) -> None:
    module = matrix(48, 64, 2, 64, False)
    with torch.no_grad():
        twin = copy.deepcopy(dense)
        values = module.dense()
        twin.weight.copy_(values.T if isinstance(dense, Conv1D) else values)  # type: ignore[operator]
    packed_layer(dense, module)
    assert type(dense) is packed
    # The near-exact class of ops/README.md: an RMS error of at most 1e-4.
    error = torch.linalg.norm(dense(example) - twin(example))
    assert error <= 1e-4 * torch.linalg.norm(twin(example))
    copied = copy.deepcopy(dense)
    assert torch.equal(copied(example), dense(example))
    assert "weight.codes" in dense.state_dict()


def test_a_subclass_keeps_its_own_forward() -> None:
    class Doubled(nn.Embedding):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            return super().forward(input) * 2

    layer, module = Doubled(48, 64), matrix(48, 64, 2, 64, False)
    packed_layer(layer, module)
    assert torch.equal(layer(torch.tensor([5]))[0], module.dense()[5] * 2)


def test_another_kind_of_layer_is_refused() -> None:
    with pytest.raises(BcqError, match="LayerNorm") as caught:
        packed_layer(nn.LayerNorm(64), matrix(48, 64, 2, 64, False))
    assert caught.value.code == "E401"
