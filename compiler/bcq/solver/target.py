# SPDX-License-Identifier: Apache-2.0
"""What a layer should aim at when the layers before it are quantized already and feed it inputs that are off.

With x the inputs of the float model and y those that really come, the best dense matrix under y is the T
that minimises the mean of |W x - T y|^2: W plus W C (H + d I)^-1 with H = E[y y^T] and C = E[(x - y) y^T].
Quantizing T instead of W under H lets each layer make up for the errors of those before. Source: least
squares; the same idea is in GPTAQ (Li et al. 2025, arXiv 2504.02692).
"""

from __future__ import annotations

import numpy as np

from bcq.bcq import Float32
from bcq.solver.blas import one_blas_thread
from bcq.solver.moments import check_finite, checked

# Of the mean diagonal. A small ridge helps small decoders a little and harms the encoder much: the best T
# under noisy inputs is a shrunken W, and what shrinks in every block adds up. See docs/decisions/0011.
RIDGE = 10.0


def compensated(weights: Float32, second_moments: Float32, drift: Float32, name: str = "weight") -> Float32:
    """The matrix to quantize in place of ``weights``.

    Args:
        weights: float32 ``[N, K]``.
        second_moments: ``[K, K]``, mean of y y^T.
        drift: ``[K, K]``, mean of (x - y) y^T.
        name: of the tensor, for errors.

    Returns:
        float32 ``[N, K]``; ``weights`` when the second moments are zero.

    Raises:
        InputError: E106 when a second moment or a drift is not finite.
        ValueError: when shapes do not fit.
    """
    matrix = checked(second_moments, weights.shape[1], name)
    check_finite(drift, f"{name}: drift of its inputs")
    seen = float(second_moments.diagonal().mean(dtype=np.float64))
    if not seen > 0:
        return weights
    scale = float(matrix.diagonal().mean(dtype=np.float64)) / seen  # a power of two
    np.fill_diagonal(matrix, matrix.diagonal() + np.float32(RIDGE * seen * scale))
    with one_blas_thread():
        pulled = drift.T @ weights.T * np.float32(scale)
        change = np.linalg.solve(matrix, pulled).T
    result: Float32 = (weights + change).astype(np.float32)
    return result
