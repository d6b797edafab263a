# SPDX-License-Identifier: Apache-2.0
"""What a changed model loses on a text: KL divergence of its predictions, or cosine of its embeddings.

The dense model's outputs on some windows of the text are computed once; a loss compares with them. A language
model, and any model with class logits, loses sum p log(p / p'), in nats a token; a model without logits loses
1 - cos of the mean of its last hidden states over the tokens of a line.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from bcq.budget.own_text import own_text
from bcq.calibration.settings import CalibrationOptions
from bcq.calibration.tokens import TokenBatches, read_tokens
from bcq.errors import UsageError
from bcq.frontends.architectures import DECODERS, class_name_of

KL, COSINE = "kl", "cosine"
OWN_TEXT = Path("self")
DECODER_TOKENS = (8, 256)  # windows, and tokens of each
OTHER_TOKENS = (8, 128)  # lines of as many tokens in all
_MOST_LOGITS = 1 << 28  # of the dense model, kept as float32: 1 GiB
_ROWS = 4  # of a batch that are run at a time


class Probe:
    """The dense model and what it says about a text.

    Args:
        folder: model folder; its class and tokenizer are those of transformers, nothing is fetched.
        text: a file or folder as for calibration; ``self`` for text that a language model writes itself.

    Attributes:
        measure: ``kl`` or ``cosine``.
        digest: SHA-256 of the token ids.
        parameters: of the model, by name; change them and ask for the loss.

    Raises:
        BcqError: as :func:`bcq.calibration.tokens.read_tokens`; E203 for ``self`` with another model.
    """

    def __init__(self, folder: Path, text: Path) -> None:
        self._model = _load(folder)
        tokens = _tokens(folder, text, self._model)
        self._batches = [part for batch in tokens.batches for part in torch.from_numpy(batch).split(_ROWS)]
        self._expected = [self._outputs(batch) for batch in self._batches]
        self.measure = KL if self._has_logits else COSINE
        self.digest = tokens.digest
        self.parameters = {name: parameter.data for name, parameter in self._model.named_parameters()}

    @torch.inference_mode()
    def loss(self) -> float:
        """What the model, as its parameters are now, loses against the dense one; at least 0."""
        lost, counted = 0.0, 0
        for batch, expected in zip(self._batches, self._expected, strict=True):
            got = self._outputs(batch)
            if self._has_logits:
                each = (expected.exp() * (expected - got)).sum(-1)
            else:
                each = 1 - (got * expected).sum(-1)
            lost, counted = lost + float(each.double().sum()), counted + each.numel()
        return max(lost / counted, 0.0)

    @torch.inference_mode()
    def _outputs(self, ids: torch.Tensor) -> torch.Tensor:
        """Log probabilities ``[..., classes]``, or embeddings of length 1, ``[lines, hidden]``."""
        result: Any = self._model(input_ids=ids)
        self._has_logits = "last_hidden_state" not in result
        if not self._has_logits:
            return functional.normalize(result.last_hidden_state.mean(1), dim=1)
        logits = (
            result.logits if "logits" in result else torch.stack([result.start_logits, result.end_logits])
        )
        return functional.log_softmax(logits.float(), -1)


def _load(folder: Path) -> Any:
    import transformers

    from bcq.files.checkpoint import read_config
    from bcq.frontends.weightless import quiet, without_pooler

    name = class_name_of(read_config(folder))
    options: dict[str, Any] = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True}
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        with quiet():
            model = getattr(transformers, name).from_pretrained(folder, **options, **without_pooler(name))
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
    model.config.use_cache = False
    return model.eval().requires_grad_(False)


def _tokens(folder: Path, text: Path, model: Any) -> TokenBatches:
    config = model.config.get_text_config()
    decoder = type(model).__name__ in DECODERS
    windows, width = DECODER_TOKENS if decoder else OTHER_TOKENS
    context = getattr(config, "max_position_embeddings", width)
    width = min(width, int(context))
    windows = min(windows, max(1, _MOST_LOGITS // (width * int(config.vocab_size))))
    if text == OWN_TEXT and not text.exists():
        return _own_tokens(model, decoder, windows, width)
    return read_tokens(folder, config, decoder, 0, CalibrationOptions(text, windows, width))


def _own_tokens(model: Any, decoder: bool, windows: int, width: int) -> TokenBatches:
    if not decoder:
        raise UsageError(
            "E203",
            f"a {type(model).__name__} writes no text to measure sensitivities on.",
            "Give a text: --sensitivity-text FILE.",
        )
    ids = own_text(model, windows, width).numpy()
    return TokenBatches((ids,), hashlib.sha256(ids.tobytes()).hexdigest())
