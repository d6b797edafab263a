# SPDX-License-Identifier: Apache-2.0
"""The greedy solver: each plane is the sign of what the planes before it left over.

Source: Kwon et al. 2022 (arXiv 2210.03858), section 3, after Guo et al. 2017 (network sketching).
"""

from __future__ import annotations

import numpy as np

from bcq.solver.groups import Float32
from bcq.solver.levels import Float64


def greedy(weights: Float32, bits: int, offset: bool) -> Float64:
    """Coefficients ``[R, q]`` or ``[R, q + 1]`` of groups ``[R, width]``; the offset is the group's mean."""
    columns = []
    mean = weights.mean(axis=1, dtype=np.float64)
    residual = weights - mean.astype(np.float32)[:, None] if offset else weights.copy()
    for _ in range(bits):
        alpha = np.abs(residual).mean(axis=1, dtype=np.float64)
        residual -= np.copysign(alpha.astype(np.float32)[:, None], residual)
        columns.append(alpha)
    return np.stack([*columns, mean] if offset else columns, axis=1)
