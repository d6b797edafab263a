# SPDX-License-Identifier: Apache-2.0
"""Arrays that touch a page which nobody may read or write: one byte too far ends the process."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE = mmap.PAGESIZE
_NOTHING = 0  # PROT_NONE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def guarded(array: NDArray[Any], *, before: bool = False, aligned: int = 1) -> NDArray[Any]:
    """A copy whose last byte lies before a forbidden page, or whose first byte lies behind one.

    Args:
        array: what to copy; an empty one gets the address of the forbidden page itself.
        before: the forbidden page comes first.
        aligned: the copy starts at a multiple of this many bytes, so up to as many bytes are left behind it.
    """
    size = -(-array.nbytes // aligned) * aligned
    pages = -(-size // PAGE) * PAGE
    memory = mmap.mmap(-1, pages + PAGE)
    whole = np.frombuffer(memory, np.uint8)
    forbidden = whole.ctypes.data + (0 if before else pages)
    start = PAGE if before else pages - size
    copy: NDArray[Any] = whole[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    if _libc.mprotect(forbidden, PAGE, _NOTHING) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    return copy
