# SPDX-License-Identifier: Apache-2.0
"""Quantization that sees the inputs of each matrix: text in, second moments block by block, matrices out.

Data flows from `texts` over `tokens` to `calibrate`, which walks the blocks of a model (`blocks`, `weights`,
`hidden`, `moments`) and gives matrices as `task` to `pool` (processes) or `cluster` (Dask).
"""

from __future__ import annotations

from bcq.calibration.settings import CalibrationOptions

__all__ = ["CalibrationOptions"]
