# SPDX-License-Identifier: Apache-2.0
"""Decoders that run without onnxruntime: the library's (``runtime/native``) behind ``bcq.generation``."""
