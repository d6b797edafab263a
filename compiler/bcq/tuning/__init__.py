# SPDX-License-Identifier: Apache-2.0
"""Trains a task's scaling factors on a frozen quantized base: data in, adapter out."""
