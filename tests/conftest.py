# SPDX-License-Identifier: Apache-2.0
"""Imports bcq before a test imports onnxruntime, which would otherwise collect facts and send them."""

import bcq  # noqa: F401
