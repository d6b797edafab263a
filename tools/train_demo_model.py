# SPDX-License-Identifier: Apache-2.0
"""Trains the small GPT-2-type model that ships in ``compiler/bcq/demo_model``.

The text is the public-domain collection of US State of the Union and inaugural addresses (NLTK's corpora
``state_union`` and ``inaugural``, concatenated, xz-compressed). The last speech is held out and shipped as
``heldout.txt`` for the perplexity figures.

    python tools/train_demo_model.py speeches.txt.xz --output compiler/bcq/demo_model
"""

from __future__ import annotations

import argparse
import lzma
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

CONTEXT = 256
END = "<|endoftext|>"


@dataclass(frozen=True)
class Recipe:
    """All numbers that the result depends on."""

    vocabulary: int = 1536
    width: int = 128
    inner: int = 384  # three times the width: with fp16 weights the folder stays under 2 MB
    layers: int = 4
    heads: int = 4
    steps: int = 3500
    batch: int = 8
    learning_rate: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.1
    seed: int = 0


def read_speeches(path: Path) -> tuple[str, str]:
    """Returns the training text and the held-out last speech, cleaned."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        raw = file.read()
    cut = raw.rindex("THE PRESIDENT:")
    return clean(raw[:cut]), clean(raw[cut:])


def clean(text: str) -> str:
    """Drops applause marks, speaker labels and non-ASCII bytes; joins runs of blank lines and spaces."""
    text = re.sub(r"\(Applause\.?\)|THE PRESIDENT:", "", text)
    text = text.encode("ascii", "ignore").decode("ascii")
    text = re.sub(r"[ \t]+", " ", text)
    return re.sub(r"\s*\n\s*", "\n\n", text).strip() + "\n"


def train_tokenizer(text: str, vocabulary: int) -> Tokenizer:
    """Returns a byte-level BPE tokenizer of `vocabulary` entries; entry 0 ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.split("\n\n"), trainer)
    return tokenizer


def new_model(recipe: Recipe) -> GPT2LMHeadModel:
    """Returns an untrained model; every matrix side is a multiple of 128, so that groups divide."""
    config = GPT2Config(
        vocab_size=recipe.vocabulary,
        n_positions=CONTEXT,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        n_inner=recipe.inner,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=True,
    )
    return GPT2LMHeadModel(config)


def learning_rate(step: int, done: float, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to a hundredth; `done` is the share of the run that is over."""
    warm = min(1.0, (step + 1) / recipe.warmup)
    return recipe.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def windows(tokens: torch.Tensor, recipe: Recipe, generator: torch.Generator) -> torch.Tensor:
    """Returns ``int64 [batch, CONTEXT]`` windows from random places."""
    starts = torch.randint(0, len(tokens) - CONTEXT, (recipe.batch,), generator=generator)
    return torch.stack([tokens[start : start + CONTEXT] for start in starts.tolist()])


@torch.no_grad()
def heldout_loss(model: GPT2LMHeadModel, tokens: torch.Tensor) -> float:
    """Returns the mean loss in nats per token over non-overlapping windows of the held-out text."""
    model.eval()
    rows = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    loss = float(model(input_ids=rows, labels=rows).loss)
    model.train()
    return loss


def save(model: GPT2LMHeadModel, tokenizer: Tokenizer, heldout: str, output: Path) -> None:
    """Writes the folder as Hugging Face lays it out: float16 weights, tokenizer, held-out text."""
    half = new_copy_in_half(model)
    half.save_pretrained(output)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, model_max_length=CONTEXT
    )
    fast.save_pretrained(output)
    (output / "heldout.txt").write_text(heldout, encoding="utf-8")


def new_copy_in_half(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """Returns a float16 copy; the model in training keeps float32."""
    copy = GPT2LMHeadModel(model.config)
    copy.load_state_dict(model.state_dict())
    copy.half()
    return copy


def new_optimizer(model: GPT2LMHeadModel, recipe: Recipe) -> torch.optim.AdamW:
    """Returns AdamW with weight decay on matrices only."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)


def take_step(model: GPT2LMHeadModel, optimizer: torch.optim.AdamW, rows: torch.Tensor, rate: float) -> float:
    """Moves the weights once and returns the loss before the move, in nats per token."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = model(input_ids=rows, labels=rows, use_cache=False).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.item())


def train(recipe: Recipe, text: str, heldout: str, output: Path, save_every: int, minutes: float) -> None:
    """Trains from scratch; writes the folder every `save_every` steps and at the end.

    Args:
        recipe: the numbers.
        text: what is learned.
        heldout: what is only measured on.
        output: the folder to write.
        save_every: steps between two checkpoints.
        minutes: wall time after which the schedule ends, whatever `recipe.steps` says; a run that reaches it
            depends on the machine's speed, one that does not is reproducible.
    """
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    tokenizer = train_tokenizer(text, recipe.vocabulary)
    tokens = torch.tensor(tokenizer.encode(text).ids)
    unseen = torch.tensor(tokenizer.encode(heldout).ids)
    model = new_model(recipe)
    optimizer = new_optimizer(model, recipe)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(tokens)} tokens", flush=True)
    began, step, done = time.monotonic(), 0, 0.0
    while done < 1.0:
        loss = take_step(
            model, optimizer, windows(tokens, recipe, generator), learning_rate(step, done, recipe)
        )
        step += 1
        seconds = time.monotonic() - began
        done = max(step / recipe.steps, seconds / (60 * minutes))
        if step % 50 == 0:
            print(f"step {step} loss {loss:.3f} {seconds:.0f} s", flush=True)
        if step % save_every == 0 or done >= 1.0:
            save(model, tokenizer, heldout, output)
            perplexity = math.exp(heldout_loss(model, unseen))
            epochs = step * recipe.batch * CONTEXT / len(tokens)
            print(
                f"step {step} ({epochs:.2f} epochs) saved, held-out perplexity {perplexity:.2f}", flush=True
            )


def main() -> None:
    """Reads the arguments and trains."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path, help="the speeches, .txt.xz")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="end the schedule after this wall time"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    text, heldout = read_speeches(arguments.text)
    train(
        Recipe(steps=arguments.steps),
        text,
        heldout,
        arguments.output,
        arguments.save_every,
        arguments.minutes,
    )


if __name__ == "__main__":
    main()
