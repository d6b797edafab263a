# SPDX-License-Identifier: Apache-2.0
"""The operators as model-local functions in standard ONNX operators, so that any runtime runs a packed file.

A runtime that has the library uses its kernels; another one inlines these bodies. They follow
``ops/README.md`` line by line. Only operators that every opset from ``MIN_OPSET`` on has appear: a function
can import the opset of the model that carries it, as ONNX demands. The empty ``offset`` becomes zeros by
appending zeros and keeping the first ones.
"""

from __future__ import annotations

import onnx
import onnx.parser
import onnx_ir as ir

from bcq import contract

MIN_OPSET = 13
CAST_LIKE_SINCE = 15

# words [R, C, q], alpha [R, G, q], offsets [R, G] to W [R, K], for R rows of the matrix. A word is four
# bytes, a byte selects eight signs from a table; all weights of a word share their alphas, since g is K or
# a multiple of 32, so a small MatMul sums the planes. A runtime that folds constants keeps what every step
# makes: be brief.
_DECODE = """
    words_apart = Unsqueeze (words, two)
    shifted = BitShift <direction = "RIGHT"> (words_apart, byte_places)
    bytes = Mod (shifted, byte_base)
    byte_index = Cast <to = 6> (bytes)
    signs = Gather <axis = 0> (byte_signs, byte_index)
    alpha_f = Cast <to = 1> (alpha)
    alpha_of_word = Gather <axis = 1> (alpha_f, group_of_word)
    alpha_row = Unsqueeze (alpha_of_word, two_three)
    summed = MatMul (alpha_row, signs)
    offset_f = Cast <to = 1> (offsets)
    offset_of_word = Gather <axis = 1> (offset_f, group_of_word)
    offset_apart = Unsqueeze (offset_of_word, two_to_four)
    shifted_sum = Add (summed, offset_apart)
    padded_shape = Concat <axis = 0> (zero, padded_k)
    W_padded = Reshape (shifted_sum, padded_shape)
    W = Slice (W_padded, zero, k, one)
"""

# Attributes as tensors, and what follows from them: C, G, the group of each chunk, the signs of each byte.
_CONSTANTS = f"""
    k_attribute = Constant <value_int: int = @K> ()
    n_attribute = Constant <value_int: int = @N> ()
    g = Constant <value_int: int = @group_size> ()
    q_attribute = Constant <value_int: int = @bits> ()
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    two_three = Constant <value_ints = [2, 3]> ()
    two_to_four = Constant <value_ints = [2, 3, 4]> ()
    last = Constant <value_ints = [-1]> ()
    word = Constant <value_ints = [{contract.WORD_BITS}]> ()
    word_less = Constant <value_ints = [{contract.WORD_BITS - 1}]> ()
    k = Reshape (k_attribute, one)
    n = Reshape (n_attribute, one)
    q = Reshape (q_attribute, one)
    k_up = Add (k, word_less)
    C = Div (k_up, word)
    padded_k = Mul (C, word)
    k_less = Sub (k, one)
    g_less = Div (k_less, g)
    G = Add (g_less, one)
    i_zero = Constant <value_int = 0> ()
    i_word = Constant <value_int = {contract.WORD_BITS}> ()
    first_inputs = Range (i_zero, k_attribute, i_word)
    group_of_word = Div (first_inputs, g)
    byte_places = Constant <value = uint32[4, 1] {{0, 8, 16, 24}}> ()
    byte_base = Constant <value = uint32[1] {{256}}> ()
    bit_places = Constant <value = uint32[8] {{0, 1, 2, 3, 4, 5, 6, 7}}> ()
    bit_base = Constant <value = uint32[1] {{2}}> ()
    f_one = Constant <value_float = 1.0> ()
    f_two = Constant <value_float = 2.0> ()
    i_one = Constant <value_int = 1> ()
    i_bytes = Constant <value_int = 256> ()
    byte_range = Range (i_zero, i_bytes, i_one)
    all_bytes = Cast <to = 12> (byte_range)
    bytes_apart = Unsqueeze (all_bytes, one)
    byte_shifted = BitShift <direction = "RIGHT"> (bytes_apart, bit_places)
    byte_bits = Mod (byte_shifted, bit_base)
    byte_ones = Cast <to = 1> (byte_bits)
    byte_doubled = Mul (byte_ones, f_two)
    byte_signs = Sub (byte_doubled, f_one)
"""

# tile16 to plain order, planes beyond q and padding rows cut off: all_words [N, C, q], all_alpha [N, G, q],
# all_offsets [N, G].
_ROWS = """
    codes_used = Slice (codes, zero, q, two)
    codes_by_row = Transpose <perm = [0, 3, 1, 2]> (codes_used)
    words_shape = Concat <axis = 0> (last, C, q)
    words_padded = Reshape (codes_by_row, words_shape)
    all_words = Slice (words_padded, zero, n, zero)
    alpha_first = Unsqueeze (alpha_1, two)
    alpha_tiles = Concat <axis = 2> (alpha_first, alpha_rest)
    alpha_by_row = Transpose <perm = [0, 3, 1, 2]> (alpha_tiles)
    alpha_shape = Concat <axis = 0> (last, G, q)
    alpha_padded = Reshape (alpha_by_row, alpha_shape)
    all_alpha = Slice (alpha_padded, zero, n, zero)
    tiled_shape = Shape (alpha_1)
    nothing = ConstantOfShape <value = float16[1] {0}> (tiled_shape)
    nothing_flat = Reshape (nothing, last)
    given = Reshape (offset, last)
    given_or_nothing = Concat <axis = 0> (given, nothing_flat)
    count = Shape (nothing_flat)
    offset_flat = Slice (given_or_nothing, zero, count, zero)
    offset_tiles = Reshape (offset_flat, tiled_shape)
    offset_by_row = Transpose <perm = [0, 2, 1]> (offset_tiles)
    offset_shape = Concat <axis = 0> (last, G)
    offset_padded = Reshape (offset_by_row, offset_shape)
    all_offsets = Slice (offset_padded, zero, n, zero)
"""

_MATMUL = """
    words = Identity (all_words)
    alpha = Identity (all_alpha)
    offsets = Identity (all_offsets)
    {decode}
    W_columns = Transpose <perm = [1, 0]> (W)
    A_f = Cast <to = 1> (A)
    Y_f = MatMul (A_f, W_columns)
    Y = {restore}
"""

_GATHER = """
    wanted = Reshape (indices, last)
    words = Gather <axis = 0> (all_words, wanted)
    alpha = Gather <axis = 0> (all_alpha, wanted)
    offsets = Gather <axis = 0> (all_offsets, wanted)
    {decode}
    leading = Shape (indices)
    shape = Concat <axis = 0> (leading, k)
    Y = Reshape {allow_zero} (W, shape)
"""


def functions(opset: int, activation: ir.DataType = ir.DataType.FLOAT) -> list[ir.Function]:
    """The functions of all operators of the contract.

    Args:
        opset: version of the standard domain that the carrying model imports, at least ``MIN_OPSET``.
        activation: element type of ``A``; it matters below opset 15 only, where no operator can cast to
            the type of another value.

    Raises:
        ValueError: when the opset is older than ``MIN_OPSET``.
    """
    if opset < MIN_OPSET:
        raise ValueError(f"opset: got {opset}, expected at least {MIN_OPSET}")
    restore = "CastLike (Y_f, A)" if opset >= CAST_LIKE_SINCE else f"Cast <to = {activation.value}> (Y_f)"
    allow_zero = "<allowzero = 1>" if opset >= 14 else ""
    bodies = {
        contract.MATMUL.name: _MATMUL.format(decode=_DECODE, restore=restore),
        contract.GATHER.name: _GATHER.format(decode=_DECODE, allow_zero=allow_zero),
    }
    return [_function(contract.OPS[name], body, opset) for name, body in bodies.items()]


def _function(op: contract.Op, body: str, opset: int) -> ir.Function:
    inputs = ", ".join(port.name for port in op.inputs)
    outputs = ", ".join(port.name for port in op.outputs)
    text = f"""
    <domain: "{contract.DOMAIN}", opset_import: ["" : {opset}]>
    {op.name} <{", ".join(op.attributes)}> ({inputs}) => ({outputs})
    {{ {_CONSTANTS} {_ROWS} {body} }}
    """
    proto: onnx.FunctionProto = onnx.parser.parse_function(text)
    return ir.serde.deserialize_function(proto)
