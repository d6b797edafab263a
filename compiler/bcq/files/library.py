# SPDX-License-Identifier: Apache-2.0
"""Where the operator library lies; nothing is loaded, so programs without onnxruntime may ask, too."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from bcq.errors import ResourceError

LIBRARY_NAME = "libbcq_ops.so"


def library_path() -> Path:
    """Where the operator library lies, for any program that registers it itself.

    Returns:
        Absolute path of ``libbcq_ops.so``, also for editable installs. The environment variable
        ``BCQ_LIBRARY`` names another build of it, for example one with sanitizers.

    Raises:
        ResourceError: E603 when this installation has none.
    """
    path = Path(os.environ.get("BCQ_LIBRARY") or str(files("bcq") / LIBRARY_NAME))
    if not path.is_file():
        raise ResourceError(
            "E603",
            f"{path}: the operator library is not there.",
            "Install the package with pip, run 'make build' in the checkout, or unset BCQ_LIBRARY.",
        )
    return path.resolve()
