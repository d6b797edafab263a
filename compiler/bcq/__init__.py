# SPDX-License-Identifier: Apache-2.0
"""onnx-bcq: a tuned transformer in, a small and fast ONNX model out."""
