# SPDX-License-Identifier: Apache-2.0
"""What cannot be asked of a kind of model, said before any work."""

from __future__ import annotations

from typing import Any

from bcq.errors import UnsupportedError, UsageError
from bcq.frontends.architectures import architecture_of


def check_abilities(config: dict[str, Any], *, int8_cache: bool, fused: bool, tasks: bool) -> None:
    """Refuses options that the architecture of a configuration cannot have.

    Args:
        config: the contents of ``config.json``.
        int8_cache: keys and values shall be int8.
        fused: attention shall be one operator a layer.
        tasks: the export shall serve tasks, one per request.

    Raises:
        UsageError: E203 for a cache, or tasks, of what has none.
        UnsupportedError: E401 for attention that cannot be fused, and as `architecture_of`.
    """
    kind = architecture_of(config).kind
    if int8_cache and kind != "decoder":
        why = "an encoder has no cache" if kind == "encoder" else "scores of this encoder-decoder have a bias"
        raise UsageError("E203", f"--kv-cache int8 is for decoders; {why}.")
    if kind != "encoder-decoder":
        return
    if fused:
        raise UnsupportedError(
            "E401",
            "the attention of this model cannot be fused: its scores have a bias for each distance.",
            "Use --attention plain.",
        )
    if tasks:
        raise UsageError(
            "E203",
            "--adapters: an encoder-decoder cannot swap tasks; its two graphs would need each task's values.",
            "Make an export for each task with --adapter.",
        )
