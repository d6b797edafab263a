# SPDX-License-Identifier: Apache-2.0
"""PyTorch on one thread for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """PyTorch on one thread.

    Products of small matrices are faster so, and none differs in its last bits with the number of threads
    that share it.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
