# SPDX-License-Identifier: Apache-2.0
"""The whole chain: a model folder in, packed ONNX out, run in onnxruntime, and parity with PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="PyTorch is the reference")
pytest.importorskip("transformers", reason="transformers makes the models")

import onnx.reference
import torch

import bcq
import tiny_models
from bcq import parity
from bcq.export import ExportResult
from bcq.files.exported import ExportedWeights
from bcq.matrices.plan import QuantizeOptions
from bcq.parity.graph import first_rows, nearest
from bcq.parity.reference import dequantized_model

STEPS = 16
PROMPT = [5, 17, 33, 60, 2, 9, 71]
OPTIONS = QuantizeOptions(bits=3, group_size=32, method="greedy")
# Random rows that decide nothing but that masks work: a shorter prompt, padded.
PADDED_LEFT = [[5, 17, 33, 60, 2, 9, 71], [0, 0, 0, 44, 8, 90, 13]]
PADDED_RIGHT = [[5, 17, 33, 60, 2, 9, 71], [44, 8, 90, 13, 0, 0, 0]]
MASK_LEFT = [[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]]
MASK_RIGHT = [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]]
FUSED = ["gpt2", "opt"]  # attention is one operator; the heads of the others do not fit it


@dataclass(frozen=True)
class Chain:
    """A source folder, its export, and PyTorch with the weights that the export holds."""

    kind: str
    source: Path
    result: ExportResult
    reference: Any
    weights: ExportedWeights

    @property
    def folder(self) -> Path:
        return self.result.folder

    @property
    def tolerance(self) -> float:
        """Derived in bcq.parity: 1e-4 per matrix, independent of each other."""
        return parity.tolerance(self.weights)


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Chain]:
    """Filled by `chain`, so that each model is exported once."""
    return {}


def chain_of(kind: str, chains: dict[str, Chain], factory: pytest.TempPathFactory) -> Chain:
    if kind not in chains:
        source = tiny_models.save(kind, factory.mktemp(kind) / "model")
        result = bcq.export(source, source.parent / "out", **vars_of(OPTIONS))
        weights = ExportedWeights.open(result.folder)
        chains[kind] = Chain(kind, source, result, dequantized_model(result.folder, weights), weights)
    return chains[kind]


def vars_of(options: QuantizeOptions) -> dict[str, Any]:
    return {"bits": options.bits, "group_size": options.group_size, "method": options.method}


@pytest.fixture(params=[*tiny_models.DECODERS, *tiny_models.ENCODERS])
def chain(
    request: pytest.FixtureRequest, chains: dict[str, Chain], tmp_path_factory: pytest.TempPathFactory
) -> Chain:
    return chain_of(request.param, chains, tmp_path_factory)


@pytest.fixture(params=tiny_models.DECODERS)
def decoder(
    request: pytest.FixtureRequest, chains: dict[str, Chain], tmp_path_factory: pytest.TempPathFactory
) -> Chain:
    return chain_of(request.param, chains, tmp_path_factory)


@pytest.fixture(params=FUSED)
def fused_decoder(
    request: pytest.FixtureRequest, chains: dict[str, Chain], tmp_path_factory: pytest.TempPathFactory
) -> Chain:
    return chain_of(request.param, chains, tmp_path_factory)


@pytest.fixture(params=["llama"])
def plain_decoder(
    request: pytest.FixtureRequest, chains: dict[str, Chain], tmp_path_factory: pytest.TempPathFactory
) -> Chain:
    return chain_of(request.param, chains, tmp_path_factory)


@pytest.fixture(params=["gpt2", "llama"])
def genai_decoder(
    request: pytest.FixtureRequest, chains: dict[str, Chain], tmp_path_factory: pytest.TempPathFactory
) -> Chain:
    return chain_of(request.param, chains, tmp_path_factory)


def first_feeds(chain: Chain) -> dict[str, NDArray[Any]]:
    """Padded tokens for the prompt, whatever the model."""
    right = chain.kind in ("bert", *FUSED)
    mask = np.array(MASK_RIGHT if right else MASK_LEFT, np.int64)
    tokens = np.array(PADDED_RIGHT if right else PADDED_LEFT, np.int64)
    feeds: dict[str, NDArray[Any]] = {"input_ids": tokens, "attention_mask": mask}
    if chain.kind == "bert":
        feeds["token_type_ids"] = np.array([[0, 0, 0, 1, 1, 1, 1]] * 2, np.int64)
        return feeds
    if chain.kind != "opt":
        feeds["position_ids"] = np.maximum(mask.cumsum(1) - 1, 0)
    return {**feeds, **bcq.load(chain.folder).empty_cache(batch=2)}


def test_every_matrix_is_packed(chain: Chain) -> None:
    report = chain.result.report
    assert report.packed_share == 1.0  # at least 90 % is the promise; these models have nothing odd
    assert report.packed_count == report.total_count == len(chain.weights.packed)


def test_logits_equal_pytorch_with_dequantized_weights_over_prompt_and_decode_steps(chain: Chain) -> None:
    result = bcq.verify(chain.folder, chain.source, steps=STEPS, per_layer=True)
    assert result.ok, result
    assert result.relative <= result.tolerance
    assert result.tokens_equal is (None if chain.kind == "bert" else True)
    assert result.original is not None
    assert result.original["relative"] > 10 * result.tolerance  # quantization shows: the weights are ours


def test_generated_tokens_equal_those_of_pytorch(decoder: Chain) -> None:
    ours = bcq.load(decoder.folder).generate(PROMPT, max_new_tokens=STEPS)
    with torch.no_grad():
        theirs = decoder.reference.generate(
            torch.tensor([PROMPT]),
            attention_mask=torch.ones(1, len(PROMPT), dtype=torch.int64),
            max_new_tokens=STEPS,
            do_sample=False,
        )
    expected = theirs[0, len(PROMPT) :].tolist()
    assert ours == expected[: len(ours)]
    assert len(ours) == STEPS or expected[len(ours)] == 1  # the end token stops both
    assert len(set(ours)) > 2  # a model that repeats one token would prove little


def test_a_left_padded_batch_gives_each_row_what_pytorch_gives_it(plain_decoder: Chain) -> None:
    check_batch(plain_decoder, PADDED_LEFT, MASK_LEFT)


def test_a_right_padded_batch_gives_each_row_what_pytorch_gives_it(fused_decoder: Chain) -> None:
    check_batch(fused_decoder, PADDED_RIGHT, MASK_RIGHT)


def test_fused_attention_refuses_rows_that_are_padded_on_the_left(fused_decoder: Chain) -> None:
    model = bcq.load(fused_decoder.folder)
    with pytest.raises(Exception, match=r"seqlens_k\[1\] = -1 is out of range"):
        model.logits(np.array(PADDED_LEFT), model.empty_cache(batch=2), np.array(MASK_LEFT))


def check_batch(decoder: Chain, padded: list[list[int]], ones: list[list[int]]) -> None:
    """Prompts and three more tokens; each row goes on after its own last token."""
    model = bcq.load(decoder.folder)
    mask = np.array(ones, np.int64)
    tokens, past = np.array(padded, np.int64), model.empty_cache(batch=2)
    cache = None
    for _ in range(4):
        got, past = model.logits(tokens, past, mask)
        positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -tokens.shape[1] :]
        ordered = {} if decoder.kind == "opt" else {"position_ids": torch.from_numpy(positions)}
        with torch.no_grad():
            expected = decoder.reference(
                input_ids=torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask),
                past_key_values=cache, use_cache=True, **ordered,
            )  # fmt: skip
        cache = expected.past_key_values
        real = mask[:, -tokens.shape[1] :].astype(bool)
        difference = got[real] - expected.logits.numpy()[real]
        assert parity.relative_rms(difference, expected.logits.numpy()[real]) <= decoder.tolerance
        last = [row.nonzero()[0][-1] for row in real]
        tokens = got[np.arange(2), last].argmax(-1)[:, None]
        mask = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)


def test_the_same_file_answers_alike_without_the_library(chain: Chain) -> None:
    feeds = first_feeds(chain)
    with_library = bcq.session(chain.folder).run(None, feeds)
    without = bcq.session(chain.folder, with_library=False).run(None, feeds)
    for got, expected in zip(without, with_library, strict=True):
        assert parity.relative_rms(got - expected, expected) <= chain.tolerance


@pytest.mark.parametrize("kind", ["llama", "bert"])  # fused attention is an operator of onnxruntime alone
def test_the_same_file_answers_alike_in_the_reference_evaluator(
    kind: str, chains: dict[str, Chain], tmp_path_factory: pytest.TempPathFactory
) -> None:
    chain = chain_of(kind, chains, tmp_path_factory)
    feeds = first_feeds(chain)
    with_library = bcq.session(chain.folder).run(None, feeds)
    evaluator = onnx.reference.ReferenceEvaluator(str(chain.folder / "model.onnx"))
    with np.errstate(all="ignore"):  # masked attention scores of padding are -inf on purpose
        reference = evaluator.run(None, feeds)
    for got, expected in zip(reference, with_library, strict=True):
        assert parity.relative_rms(np.asarray(got) - expected, expected) <= chain.tolerance


def test_onnxruntime_genai_generates_the_same_tokens(genai_decoder: Chain) -> None:
    genai = pytest.importorskip("onnxruntime_genai", reason="the package onnxruntime-genai is not installed")
    ours = bcq.load(genai_decoder.folder).generate(PROMPT, max_new_tokens=STEPS)
    model = genai.Model(str(genai_decoder.folder))
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=len(PROMPT) + STEPS, do_sample=False)
    generator = genai.Generator(model, options)
    generator.append_tokens(np.array([PROMPT], np.int32))
    theirs = []
    while not generator.is_done():
        generator.generate_next_token()
        theirs.append(int(generator.get_next_tokens()[0]))
    assert theirs[: len(ours)] == ours
    assert len(theirs) - len(ours) in (0, 1)  # it also returns the end token


def test_exporting_again_over_the_output_gives_the_same_bytes(
    chains: dict[str, Chain], tmp_path_factory: pytest.TempPathFactory
) -> None:
    chain = chain_of("bert", chains, tmp_path_factory)
    before = contents(chain.folder)
    bcq.export(chain.source, chain.folder, **vars_of(OPTIONS))
    assert contents(chain.folder) == before


def test_a_base_exports_to_the_same_model_as_its_source(
    chains: dict[str, Chain], tmp_path_factory: pytest.TempPathFactory
) -> None:
    chain = chain_of("bert", chains, tmp_path_factory)
    base = bcq.quantize(chain.source, **vars_of(OPTIONS))
    result = bcq.export(base, tmp_path_factory.mktemp("again") / "out")
    ours, theirs = contents(chain.folder), contents(result.folder)
    assert ours["model.onnx"] == theirs["model.onnx"]
    assert ours["model.onnx.data"] == theirs["model.onnx.data"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Plain(torch.nn.Module):
    """What somebody else would write to export a decoder with its cache."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, past: Any) -> Any:
        cache = transformers_cache()
        for layer, (key, value) in enumerate(past):
            cache.update(key, value, layer)
        result = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
        )
        caches = [part for layer in result.past_key_values.layers for part in (layer.keys, layer.values)]
        return (result.logits, *caches)


def transformers_cache() -> Any:
    from transformers.cache_utils import DynamicCache

    return DynamicCache()


def plain_export(source: Path, path: Path, layers: int, heads: int, size: int) -> None:
    """torch's exporter with its own optimizations, and nothing of ours."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source).eval()
    shape = (2, heads, 5, size)
    past = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(layers)]  # one tensor each: aliases merge
    free = {0: "batch", 2: "past"}
    names = [f"{part}.{layer}" for layer in range(layers) for part in ("key", "value")]
    tokens, mask = torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64)
    new = {0: "batch", 1: "sequence"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about itself
        torch.onnx.export(
            Plain(model), (tokens, mask, tokens + 4, past), path, dynamo=True, external_data=True,
            dynamic_shapes=(new, {0: "batch", 1: "total"}, new, [(free, free)] * layers), verbose=False,
            input_names=["input_ids", "attention_mask", "position_ids", *[f"past.{name}" for name in names]],
            output_names=["logits", *[f"present.{name}" for name in names]],
        )  # fmt: skip


@pytest.mark.parametrize(("kind", "heads", "size"), [("gpt2", 4, 16), ("opt", 4, 16), ("llama", 2, 18)])
def test_a_file_by_the_plain_torch_exporter_goes_the_same_way(
    kind: str, heads: int, size: int, tmp_path: Path
) -> None:
    source = tiny_models.save(kind, tmp_path / "model")
    plain_export(source, tmp_path / "plain.onnx", 2, heads, size)
    packed = bcq.export(tmp_path / "plain.onnx", tmp_path / "out", **vars_of(OPTIONS))
    assert packed.kind == "graph"
    assert packed.report.packed_share >= 0.9
    assert bcq.verify(packed.folder, tmp_path / "plain.onnx").ok

    weights = ExportedWeights.open(packed.folder)
    session = bcq.session(packed.folder)
    names = [value.name for value in session.get_inputs() if "past" in value.name]
    past = {name: np.zeros((1, heads, 0, size), np.float32) for name in names}
    reference = with_values_of(weights, source)
    cache, new, length = transformers_cache(), PROMPT, 0
    for _ in range(STEPS + 1):
        length += len(new)
        feeds = {
            "input_ids": np.array([new], np.int64),
            "attention_mask": np.ones((1, length), np.int64),
            "position_ids": np.arange(length - len(new), length)[None],
        }
        logits, *caches = session.run(None, {**feeds, **past})
        past = dict(zip(names, caches, strict=True))
        with torch.no_grad():
            result = reference(input_ids=torch.tensor([new]), past_key_values=cache, use_cache=True)
        expected = result.logits.numpy()
        assert parity.relative_rms(logits - expected, expected) <= parity.tolerance(weights)
        assert logits[0, -1].argmax() == expected[0, -1].argmax()
        new = [int(expected[0, -1].argmax())]


def with_values_of(weights: ExportedWeights, source: Path) -> Any:
    """The PyTorch model with every matrix replaced by the packed one that is nearest to it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source).eval()
    rows = first_rows(weights)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                found = nearest(parameter.numpy(), weights, rows)
                assert found is not None
                parameter.copy_(torch.from_numpy(found[1]))
    return model


def test_what_is_run_needs_no_torch(
    chains: dict[str, Chain], tmp_path_factory: pytest.TempPathFactory
) -> None:
    import subprocess
    import sys

    chain = chain_of("gpt2", chains, tmp_path_factory)
    program = (
        "import sys, bcq\n"
        f"tokens = bcq.load({str(chain.folder)!r}).generate({PROMPT}, max_new_tokens=4)\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnx_ir', 'onnxscript'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(tokens)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected: Sequence[int] = bcq.load(chain.folder).generate(PROMPT, max_new_tokens=4)
    assert done.stdout.strip() == str(expected)
