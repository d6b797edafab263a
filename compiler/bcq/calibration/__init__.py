# SPDX-License-Identifier: Apache-2.0
"""Quantization that sees the inputs of each matrix: text in, second moments block by block, matrices out.

Data flows from `texts` over `tokens` to `calibrate`. A `walk` goes through the blocks of a model (`blocks`,
`weights`, `hidden`, `moments`), gives matrices as `task` to `pool` (processes) or `cluster` (Dask), and may
`refine` them.
"""

from __future__ import annotations

from bcq.calibration.settings import CalibrationOptions

__all__ = ["CalibrationOptions"]
