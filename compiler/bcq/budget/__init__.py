# SPDX-License-Identifier: Apache-2.0
"""Budgets: bits, group size and offset of every matrix from a target of bits, bytes or time."""

from __future__ import annotations
