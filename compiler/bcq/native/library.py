# SPDX-License-Identifier: Apache-2.0
"""The C interface of the decoder (``runtime/capi/bcq_decoder.h``) in Python."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bcq.checks.library import check_contract, check_whole
from bcq.errors import InputError, ResourceError, UnsupportedError, UsageError
from bcq.files.library import library_path

_WHY_BYTES = 1024
_NO_MEMORY = "out of memory"
_MOST = 2**31 - 1  # what an int32 holds
_OPTIONS = ("room:", "threads:", "chunk:")


class _Options(ctypes.Structure):
    """``BcqDecoderOptions``, field for field."""

    _fields_ = (
        ("struct_bytes", ctypes.c_size_t),
        ("room", ctypes.c_int64),
        ("threads", ctypes.c_int32),
        ("chunk", ctypes.c_int32),
        ("parallel_for", ctypes.c_void_p),
        ("pool", ctypes.c_void_p),
    )


class Bytes(ctypes.Structure):
    """``BcqDecoderBytes``: what a decoder has in memory, see there."""

    arena: int
    cache: int
    scratch: int
    mapped: int
    _fields_ = tuple(
        (name, ctypes.c_size_t) for name in ("struct_bytes", "arena", "cache", "scratch", "mapped")
    )


class OpenDecoder:
    """A decoder of the library, with the tokens that it has seen.

    Args:
        file: the ``.onnx`` file, with its data beside it.
        room: tokens that it can see, prompt included.
        threads: that compute; results have the same bits for any number.
        chunk: tokens of a prompt that run together; 0 for the usual number.

    Raises:
        InputError: E101 when there is no such file.
        UnsupportedError: E401 when the graph has something that does not run without onnxruntime.
        UsageError: E202 for a number that is out of range.
        ResourceError: E601 for too little memory, E603 for a library that is missing or of another version.
    """

    def __init__(self, file: Path, room: int, threads: int = 1, chunk: int = 0) -> None:
        self._library = _load(library_path())
        if not file.is_file():
            raise InputError("E101", f"the file {file} does not exist.")
        numbers = (int(np.clip(number, -1, _MOST)) for number in (room, threads, chunk))
        options = _Options(ctypes.sizeof(_Options), *numbers)
        why = ctypes.create_string_buffer(_WHY_BYTES)
        path = os.fsencode(file)
        self._handle = self._library.bcq_decoder_open(path, ctypes.byref(options), why, _WHY_BYTES)
        if not self._handle:
            raise _refused(why.value.decode())
        self.vocabulary = int(self._library.bcq_decoder_vocabulary(self._handle))

    def __del__(self) -> None:
        """Gives its memory back."""
        if getattr(self, "_handle", None):
            self._library.bcq_decoder_close(self._handle)

    def step(self, tokens: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits ``[vocabulary]`` after the last of some tokens.

        Raises:
            UsageError: E202 for tokens that it does not know or has no room for.
        """
        ids = np.ascontiguousarray(tokens, np.int64)
        logits = ctypes.POINTER(ctypes.c_float)()
        wrong = self._library.bcq_decoder_step(self._handle, ids.ctypes.data, ids.size, ctypes.byref(logits))
        if wrong is not None:
            raise UsageError("E202", wrong.decode())
        found: NDArray[np.float32] = np.ctypeslib.as_array(logits, (self.vocabulary,)).copy()
        return found  # the library's are gone when it is closed

    def keep(self, tokens: int) -> None:
        """Forgets all but the first tokens."""
        self._library.bcq_decoder_keep(self._handle, tokens)

    def seen(self) -> int:
        """How many tokens it has seen."""
        return int(self._library.bcq_decoder_seen(self._handle))

    def bytes(self) -> Bytes:
        """What it has in memory."""
        found = Bytes(ctypes.sizeof(Bytes))
        self._library.bcq_decoder_bytes(self._handle, ctypes.byref(found))
        return found


def _refused(why: str) -> Exception:
    if why == _NO_MEMORY:
        return ResourceError("E601", "the decoder does not fit into memory.", "Ask for fewer tokens.")
    if why.startswith(_OPTIONS):
        return UsageError("E202", f"{why}.")
    return UnsupportedError("E401", f"{why.rstrip('.')}.", "Leave --native out to run it with onnxruntime.")


@cache
def _load(path: Path) -> ctypes.CDLL:
    check_whole(path)
    check_contract(path)
    library = ctypes.CDLL(str(path))
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
    types = {
        "open": (pointer, (ctypes.c_char_p, pointer, ctypes.c_char_p, size)),
        "step": (ctypes.c_char_p, (pointer, pointer, number, pointer)),
        "keep": (None, (pointer, number)),
        "seen": (number, (pointer,)),
        "vocabulary": (number, (pointer,)),
        "bytes": (None, (pointer, pointer)),
        "close": (None, (pointer,)),
    }
    try:
        for name, (result, arguments) in types.items():
            function = getattr(library, f"bcq_decoder_{name}")
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        raise ResourceError(
            "E603",
            f"{path}: this library is not of this version of the package: {error}",
            "Run 'make build' in the checkout, reinstall the package, or unset BCQ_LIBRARY.",
        ) from error
    return library
