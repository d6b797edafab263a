# SPDX-License-Identifier: Apache-2.0
"""The only place that knows ONNX Runtime options: the operator library, and sessions that have it."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import onnxruntime

from bcq import contract
from bcq.checks.external import check_file
from bcq.checks.library import check_contract, check_whole
from bcq.checks.model import check_model
from bcq.errors import BcqError, InputError, ResourceError, UsageError, is_out_of_memory, out_of_memory
from bcq.files.inside import check_unchanged, inner_file
from bcq.files.integrity import require_files
from bcq.files.kinds import require_export
from bcq.files.library import LIBRARY_NAME as LIBRARY_NAME
from bcq.files.library import library_path as library_path
from bcq.precisions.files import graph_file

MODEL_NAME = "model.onnx"
if os.environ.get("ORT_DISABLE_TELEMETRY", "0").lower() not in ("0", "false"):
    onnxruntime.disable_telemetry_events()  # it may have been imported before bcq, which sets the variable
VARIABLES = ("BCQ_WEIGHTS", "BCQ_PROFILE", "BCQ_ISA")  # settings that the library reads by itself
_SETTING = re.compile(rf"({'|'.join(VARIABLES)}|bcq\.weights|bcq\.profile|session options): got ")
_ASKED = "bcq.asked"  # entry of session options that have the library: what was asked for
FATAL_ONLY = 4  # every error reaches the caller as an exception; logging it too would say it twice


def session(
    folder_or_file: str | Path,
    session_options: onnxruntime.SessionOptions | None = None,
    *,
    with_library: bool = True,
    weights: str | None = None,
    profile: str | Path | None = None,
    verify: bool = False,
    bits: int | None = None,
) -> onnxruntime.InferenceSession:
    """Opens a packed model as a plain ONNX Runtime session on the CPU.

    The model is loaded by path, so ONNX Runtime maps its weights and copies nothing. It may come from anyone:
    external data must lie in regular files of its own folder, see `bcq.files.inside`.

    Args:
        folder_or_file: an ``.onnx`` file, or a folder that holds ``model.onnx``.
        session_options: used as they are, plus the operator library; None keeps its log quiet.
        with_library: False leaves the library out, so that ONNX Runtime runs the model's own functions. Slow;
            for portability tests.
        weights: ``"mapped"`` computes on the mapped bytes of the file, ``"resident"`` on a private copy of
            the codes in huge pages and in the order of the kernel, None or ``"auto"`` on a copy where the
            kernel has an order of its own. The variable ``BCQ_WEIGHTS`` wins.
        profile: a ``.jsonl`` file that gets one line per BCQ node when the session ends: its kernel, and for
            each number of rows how many runs took how long. ``BCQ_PROFILE`` wins.
        verify: compare every file of the folder with its ``MANIFEST.json`` first, which reads them all once.
        bits: the precision, for an export that serves several; None for its highest one.

    Returns:
        The session.

    Raises:
        InputError: E101 when there is no such file, E103 when it is damaged, E108 when its data lies where it
            must not or is replaced meanwhile, E109 when a BCQ node is malformed or, with `verify`, a file is
            not as it was written, E102 when a folder is no export or ONNX Runtime refuses the model for
            another reason.
        UsageError: E202 when `weights`, `profile` or a variable (``BCQ_WEIGHTS``, ``BCQ_PROFILE``,
            ``BCQ_ISA``) has a value that the library does not know, or the export does not serve `bits`.
        ResourceError: E603 when ONNX Runtime is too old or the library is missing or cannot be loaded.
    """
    model = model_file(folder_or_file, bits)
    check_onnxruntime(onnxruntime.__version__)
    options = session_options if session_options is not None else default_options()
    if with_library:
        for key, value in (("bcq.weights", weights), ("bcq.profile", profile)):
            if value is not None:
                options.add_session_config_entry(key, str(value))
        register_library(options)
    stamps = check_file(model)
    check_model(model)
    if verify:
        require_files(model.parent)
    try:
        opened = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's classes share no base of their own
        raise explain(error, model) from error
    check_unchanged(stamps)
    return opened


def default_options() -> onnxruntime.SessionOptions:
    """Fresh session options that log errors only, and keep norms in the operator that is fast."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    # Sum and norm in one operator add up element after element on a CPU: docs/decisions/0018-attention.md.
    options.add_session_config_entry("optimization.disable_specified_optimizers", "SkipLayerNormFusion")
    return options


def register_library(options: onnxruntime.SessionOptions) -> None:
    """Adds the operator library to session options; a second time does nothing.

    The library reads its configuration entries ``bcq.weights`` and ``bcq.profile`` now: set them before.

    Raises:
        UsageError: E202 when ``BCQ_WEIGHTS``, ``BCQ_PROFILE``, ``BCQ_ISA`` or an entry has a value that the
            library does not know, or has changed since a first registration.
        ResourceError: E603 when the library is missing, cut short or of another contract, or ONNX Runtime
            cannot load it.
    """
    asked = _asked_of(options)
    if _entry(options, _ASKED) == asked:
        return  # ONNX Runtime would keep one more handle of the library, for as long as the options live
    path = library_path()
    check_whole(path)
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:
        if _SETTING.match(one_line(error)):
            raise UsageError("E202", one_line(error)) from error
        raise ResourceError(
            "E603",
            f"{path}: onnxruntime {onnxruntime.__version__} cannot use this library: {one_line(error)}",
            "Reinstall the package on this machine.",
        ) from error
    check_contract(path)
    options.add_session_config_entry(_ASKED, asked)


def _asked_of(options: onnxruntime.SessionOptions) -> str:
    """A short text that changes with everything that a registration depends on."""
    entries = [_entry(options, key) for key in ("bcq.weights", "bcq.profile")]
    asked = [str(library_path()), *entries, *(os.environ.get(name) for name in VARIABLES)]
    return hashlib.sha256(repr(asked).encode()).hexdigest()


def _entry(options: onnxruntime.SessionOptions, key: str) -> str | None:
    """A configuration entry, or None when there is none."""
    try:
        return str(options.get_session_config_entry(key))
    except RuntimeError:
        return None


def settings_fault() -> str | None:
    """Why the library refuses a variable of this process, the first such, or None."""
    try:
        register_library(default_options())
    except UsageError as error:
        return error.message
    except BcqError:
        return None  # the library itself is at fault
    return None


def model_file(folder_or_file: str | Path, bits: int | None = None) -> Path:
    """The ``.onnx`` file that a path means; of a folder that serves several precisions, that of `bits`.

    Raises:
        InputError: E101 when nothing is there, E102 when a folder holds no ``model.onnx``.
        UsageError: E202 when it does not serve that precision.
    """
    path = Path(folder_or_file)
    if path.is_dir():
        if not (path / MODEL_NAME).is_file():
            require_export(path)
        file = graph_file(path, bits)
        inner_file(file, path, "it is the model")
        return file
    if bits is not None:
        raise UsageError("E202", f"bits: got {bits} for {path}, expected the folder of an export.")
    if not path.is_file():
        raise InputError("E101", f"{path}: there is no such file or folder.", "Check the path.")
    return path


def check_onnxruntime(version: str) -> None:
    """Raises ResourceError E603 unless an ONNX Runtime of this version has the API that the library needs."""
    needed = contract.ORT_API_VERSION  # API n came with release 1.n
    numbers = [int(number) for number in re.findall(r"\d+", version)[:2]]
    if numbers < [1, needed]:
        raise ResourceError(
            "E603",
            f"onnxruntime: got {version}, expected 1.{needed} or newer.",
            "Run: pip install --upgrade onnxruntime",
        )


def explain(error: Exception, model: Path) -> BcqError:
    """ONNX Runtime's reason for refusing a model, with our code and hint."""
    if is_out_of_memory(error):
        return out_of_memory(f"while {model} was opened")
    text = one_line(error)
    kind = type(error).__name__
    if f"{contract.MATMUL.name} '" in text or f"{contract.GATHER.name} '" in text:
        return InputError("E109", f"{model}: {text}")
    if kind == "InvalidProtobuf" or "Protobuf parsing failed" in text:
        return InputError(
            "E103", f"{model}: this is no ONNX model, or it is cut short.", "Copy or export it again."
        )
    if "external" in text.lower():
        return InputError(
            "E103",
            f"{model}: its weights cannot be read: {text}",
            "Keep the .onnx file and its .data file together, and copy both again.",
        )
    return InputError("E102", f"{model}: onnxruntime refuses this model: {text}")


def one_line(error: Exception) -> str:
    """An exception's text without line breaks and without ONNX Runtime's prefixes."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return re.sub(r"^(Exception during initialization|Load model from \S+ failed): ?", "", text)
