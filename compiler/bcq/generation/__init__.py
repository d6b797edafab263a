# SPDX-License-Identifier: Apache-2.0
"""From logits to text: `model.Model` is what a program meets, and each other file is one part of it.

A prompt becomes tokens (`text`), a `runner` gives them to the `decoder`, whose `cache` stays with ONNX
Runtime, an `answer` chooses tokens (`sampling`), ends where it is to end (`stops`) and tells text when it is
sure (`pieces`). Nothing here imports more than numpy and onnxruntime; tokenizers only where text comes in.
"""
