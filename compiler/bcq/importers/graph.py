# SPDX-License-Identifier: Apache-2.0
"""An ``.onnx`` file with MatMulNBits in, the same graph with BcqMatMul out, and the other way round."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from bcq import passes, report
from bcq.checks.external import check_file
from bcq.checks.model import check_model
from bcq.errors import UnsupportedError
from bcq.exporting.write import write_model
from bcq.files.atomic import AtomicFolder, check_apart
from bcq.files.checkpoint import read_config, read_json
from bcq.files.genai import CONFIG_FILE
from bcq.files.inside import check_unchanged, inner_file
from bcq.files.manifest import write_manifest
from bcq.frontends import onnx_file
from bcq.importers.from_nbits import PIPELINE, NbitsSource
from bcq.importers.result import ImportedMatrix
from bcq.importers.to_nbits import rewrite
from bcq.matrices.resume import Finished
from bcq.progress import Progress
from bcq.quantize import check_side_files, copy_side_files

_MODEL = "model.onnx"


def pack_graph(
    source: Path, output: Path, inexact: str, progress: Progress, command: Sequence[str]
) -> list[ImportedMatrix]:
    """Turns every MatMulNBits node into a BcqMatMul on the same numbers.

    Args:
        source: the ``.onnx`` file.
        output: folder to make.
        inexact: one of `bcq.importers.factors.INEXACT`.
        progress: told once a matrix.
        command: what to record in the manifest.

    Raises:
        InputError: E101 to E109 for a file that is damaged or unsafe, or a node that nobody can run.
        UnsupportedError: E401 for a node without a BCQ form, E403 for one whose numbers do not fit.
        UsageError: E203 for an output that holds something else, or the source.
        ResourceError: E601 when the disk is full.
    """
    check_apart(source, output)
    stamps = check_file(source)
    finished = Finished(output)
    with AtomicFolder(output, finished) as folder:
        model = onnx_file.load(source)
        weights = NbitsSource(inexact, finished)
        with onnx_file.explained(source):
            packed = passes.run(model, weights, progress, PIPELINE)
        if not weights.results:
            raise UnsupportedError(
                "E401", f"'{source}' has no MatMulNBits node.", "A dense graph is for `bcq export`."
            )
        write_model(model, folder / _MODEL)
        options = {"imported_from": "matmulnbits", "inexact": inexact}
        (folder / report.REPORT_FILE).write_text(
            report.report_json(packed.matrices, options), encoding="utf-8"
        )
        write_manifest(folder, command, 0)
        check_unchanged(stamps)
    return weights.results


def unpack_graph(
    source: Path, output: Path, progress: Progress, command: Sequence[str], nearest_bits: int | None = None
) -> list[ImportedMatrix]:
    """Turns every BcqMatMul node into a MatMulNBits on the same numbers, and look-ups into dense ones.

    Args:
        source: an exported ``model.onnx``.
        output: folder to make.
        progress: told once a matrix.
        command: what to record in the manifest.
        nearest_bits: 4 or 8 to take the nearest integer grid of so many bits where factors are none.

    Raises:
        InputError: E101 to E109 for a file that is damaged or unsafe.
        UnsupportedError: E401 for a file without BCQ nodes or with factors that are fed, E403 for factors
            that are no integer grid.
        UsageError: E203 for an output that holds something else, or the source.
        ResourceError: E601 when the disk is full.
    """
    check_apart(source, output)
    check_model(source)
    if (source.parent / CONFIG_FILE).is_file():
        inner_file(source.parent / CONFIG_FILE, source.parent, "it would be copied")
        check_side_files(source.parent)
    stamps = check_file(source)
    with AtomicFolder(output) as folder:
        model = onnx_file.load(source)
        records, results = rewrite(model, progress, nearest_bits)
        write_model(model, folder / _MODEL)
        text = report.report_json(records, {"made_of": "bcq"})
        (folder / report.REPORT_FILE).write_text(text, encoding="utf-8")
        _copy_companions(source.parent, folder)
        write_manifest(folder, command, 0)
        check_unchanged(stamps)
    return results


def _copy_companions(source: Path, target: Path) -> None:
    """What onnxruntime-genai wants beside an exported decoder, without the library that is not needed now."""
    if not (source / CONFIG_FILE).is_file():
        return
    copy_side_files(source, target)
    described, config = read_json(source / CONFIG_FILE), read_config(source)
    with contextlib.suppress(KeyError, TypeError):  # a folder that has none is as good
        del described["model"]["decoder"]["session_options"]["custom_ops_library"]
    config.pop("quantization_config", None)
    for name, content in ((CONFIG_FILE, described), ("config.json", config)):
        (target / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
