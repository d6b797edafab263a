# SPDX-License-Identifier: Apache-2.0
"""What turns a tuned model into an ONNX graph: from a Hugging Face folder, or from an existing file."""
