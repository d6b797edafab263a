# SPDX-License-Identifier: Apache-2.0
"""Runs a model over calibration text and solves its matrices under their real inputs, on workers."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from bcq.calibration.settings import CalibrationOptions
from bcq.calibration.task import Workers
from bcq.calibration.tokens import read_tokens
from bcq.calibration.walk import Walk
from bcq.frontends.weightless import any_weightless_model, quiet
from bcq.torch_threads import one_torch_thread

if TYPE_CHECKING:
    from bcq.files.base import BaseMatrix
    from bcq.files.checkpoint import Checkpoint
    from bcq.matrices.solver import MatrixSolver

_DECODERS = ("ForCausalLM", "LMHeadModel")


def calibrate(
    checkpoint: Checkpoint,
    packed: Mapping[str, BaseMatrix],
    solver: MatrixSolver,
    options: CalibrationOptions,
    folder: Path,
) -> None:
    """Solves all matrices that the text reaches; ``solver`` knows them afterwards.

    Args:
        checkpoint: the dense model.
        packed: the matrices to pack, by checkpoint name.
        solver: packs what is not calibrated, keeps what is.
        options: text, windows, workers.
        folder: for files that are needed during the run alone.

    Raises:
        InputError: E101 to E103 for the text or the tokenizer, E106 for weights that are not finite.
        UnsupportedError: E401 for a model whose blocks cannot be run one by one.
        ResourceError: E602 when memory runs out, E603 or E604 for a cluster that is not there.
    """
    model = any_weightless_model(checkpoint)
    config = model.config.get_text_config()
    decoder = type(model).__name__.endswith(_DECODERS)
    widest = max((matrix.inputs for matrix in packed.values() if matrix.kind != "embedding"), default=0)
    tokens = read_tokens(checkpoint.folder, config, decoder, widest, options)
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet())
        stack.enter_context(one_torch_thread())
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix=".calibration-")))
        workers = stack.enter_context(open_workers(options))
        threads = stack.enter_context(ThreadPoolExecutor(options.parallel))
        walk = Walk(checkpoint, packed, model, solver, tokens, scratch, workers, threads, options)
        stack.callback(walk.close)
        walk.run()


@contextlib.contextmanager
def open_workers(options: CalibrationOptions) -> Iterator[Workers]:
    """Processes of this machine, or the cluster that the options name."""
    if options.scheduler:
        from bcq.calibration.cluster import ClusterWorkers

        with ClusterWorkers(options.scheduler) as cluster:
            yield cluster
        return
    from bcq.calibration.pool import LocalWorkers

    with LocalWorkers(options.parallel) as local:
        yield local
