# SPDX-License-Identifier: Apache-2.0
"""The built kernels seen from Python: their plain C ABIs, and which of them each node gets."""
