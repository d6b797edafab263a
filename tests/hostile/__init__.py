# SPDX-License-Identifier: Apache-2.0
"""Files and surroundings that mean harm or are broken, and what becomes of each: the reliability score."""

import bcq  # noqa: F401 - before onnxruntime, which would otherwise collect facts and send them
