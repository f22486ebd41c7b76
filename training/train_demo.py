"""Train a small Llama-shaped language model and its byte-level BPE tokenizer from plain text files.

The path from text to model, top to bottom (the first three steps are functions of `demo_text.py`):
  1. read paragraphs, normalise their typography, hold about 2 % of them out by a hash of the text;
  2. train the tokenizer on the rest;
  3. cut windows that begin with `<s>` and the start of a sentence;
  4. train until the time budget is spent (the learning rate follows the time left, down to zero);
  5. measure the held-out paragraphs and write the model folder in one step.

    python training/train_demo.py --data ../shared/data/train --out graphtrace/demo --minutes 60 \
        --checkpoint /tmp/demo-checkpoint

A run that was cut off goes on from its checkpoint when started again with the same arguments.

Tensor names end in their shape: B windows in a batch, T tokens in a window, V vocabulary entries.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from demo_text import (
    BOS_ID,
    MAX_POSITIONS,
    PAD_ID,
    HeldOut,
    WindowSampler,
    build_corpus,
    read_paragraphs,
    train_tokenizer,
    windows_to_score,
    wrap_tokenizer,
)
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

IGNORED = -100  # a label that carries no loss
LOG_SECONDS = 30.0
EVAL_SECONDS = 300.0
CHECKPOINT_SECONDS = 120.0


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the result; every field is also a command-line option."""

    data: Path = Path("../shared/data/train")  # folder of .txt files, blank line = new paragraph
    out: Path = Path("graphtrace/demo")  # model folder to write
    checkpoint: Path = Path(tempfile.gettempdir()) / "graphtrace-demo"  # folder to resume from
    transfer: Path | None = None  # JSON lines with text and continuation: scored, never learned
    layers: int = 6
    heads: int = 8
    width: int = 256
    ff_width: int = 640
    vocab: int = 4096
    seed: int = 0
    minutes: float = 60.0  # wall-clock budget, everything before the final scores included
    max_steps: int | None = None  # stop here instead, where that is sooner
    device: str = "cpu"
    window: int = 128  # tokens; two steps of three use half of it
    batch_tokens: int = 4096  # tokens per step
    lr: float = 6e-3  # peak, of the matrices inside the layers
    embed_lr: float = 4e-3  # peak, of embeddings and norms
    warmup_steps: int = 100
    weight_decay: float = 0.1
    dropout: float = 0.1  # on what attention and MLP add to the residual stream
    boost: str = "wikitext"  # files whose name starts like this ...
    boost_factor: int = 4  # ... begin a window this many times per pass
    compile: bool = True


class Score(NamedTuple):
    """Mean loss in nats per token, and what follows from it."""

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int


# ---------------------------------------------------------------- model


def build_model(config: TrainConfig) -> LlamaForCausalLM:
    """A randomly initialised model in float32; the seed decides its weights."""
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab,
            hidden_size=config.width,
            intermediate_size=config.ff_width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=MAX_POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=BOS_ID,
            eos_token_id=None,
            pad_token_id=PAD_ID,
        )
    )
    model.set_attn_implementation("eager")  # short windows on a CPU: faster than the fused one
    if config.dropout:
        for layer in model.model.layers:
            for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
                module.register_forward_hook(
                    lambda module, _, out: F.dropout(out, config.dropout, module.training)
                )
    return model


def next_token_loss(model, tokens_BT: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Cross-entropy of every token given those before it, in nats; padding carries none."""
    logits_BTV = model(input_ids=tokens_BT[:, :-1], use_cache=False).logits
    labels_BT = tokens_BT[:, 1:]
    labels_BT = labels_BT.masked_fill(labels_BT == PAD_ID, IGNORED)
    return F.cross_entropy(
        logits_BTV.float().flatten(0, 1), labels_BT.flatten(), reduction=reduction
    )


@torch.no_grad()
def score(model: LlamaForCausalLM, held_out: HeldOut, batch: int = 32) -> Score:
    """Loss per token over the windows, in the model's own precision."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    nats, tokens = 0.0, 0
    for begin in range(0, len(held_out.windows), batch):
        rows = held_out.windows[begin : begin + batch]
        longest = max(map(len, rows))
        tokens_BT = torch.tensor([row + [PAD_ID] * (longest - len(row)) for row in rows])
        nats += next_token_loss(model, tokens_BT.to(device), "sum").item()
        tokens += sum(len(row) - 1 for row in rows)
    model.train(was_training)
    loss = nats / tokens
    return Score(loss, math.exp(loss), nats / math.log(2) / held_out.bytes, tokens)


def score_all(model: LlamaForCausalLM, parts: dict[str, HeldOut]) -> dict[str, Score]:
    """The score of each named part."""
    return {name: score(model, part) for name, part in parts.items()}


# ---------------------------------------------------------------- training


def build_optimizers(model: LlamaForCausalLM, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    optimizers = [
        torch.optim.Muon(
            matrices,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others, lr=config.embed_lr, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def spent_share(config: TrainConfig, seconds: float, step: int) -> float:
    """How much of the budget is spent, 0 to 1, by time or by steps, whichever is further on."""
    by_steps = step / config.max_steps if config.max_steps else 0.0
    return min(1.0, max(seconds / (60 * config.minutes), by_steps))


@dataclass
class Progress:
    """How far a run has come: what a checkpoint holds besides weights and optimizer states."""

    step: int = 0
    drawn: int = 0  # windows drawn from the sampler
    seconds: float = 0.0
    tokens: int = 0  # labels the loss was computed on
    best: float = math.inf  # lowest held-out loss so far, in nats per token
    best_weights: dict[str, torch.Tensor] | None = None
    history: list[list[float]] = field(default_factory=list)  # [step, seconds, held-out loss]


class Run:
    """One training run: model, optimizers and progress, resumed where a checkpoint exists."""

    def __init__(self, config: TrainConfig, sampler: WindowSampler, parts: dict[str, HeldOut]):
        self.config, self.sampler, self.parts = config, sampler, parts
        self.device = torch.device(config.device)
        self.model = build_model(config).to(self.device).train()
        self.optimizers = build_optimizers(self.model, config)
        self.progress = Progress()
        self.path = config.checkpoint / "checkpoint.pt"
        if self.path.exists():
            saved = torch.load(self.path, map_location=self.device, weights_only=True)
            self.model.load_state_dict(saved.pop("model"))
            for optimizer, state in zip(self.optimizers, saved.pop("optimizers"), strict=True):
                optimizer.load_state_dict(state)
            self.progress = Progress(**saved)
            sampler.drawn = self.progress.drawn
        torch.manual_seed(config.seed + self.progress.step)

    def step(self, loss_fn: Callable, lr_factor: float) -> torch.Tensor:
        """One update of the weights; the loss it was made on."""
        config, progress = self.config, self.progress
        # Two steps of half windows, one of whole windows: most inputs are single sentences.
        window = config.window if progress.step % 3 == 2 else config.window // 2
        tokens_BT = self.sampler.next_batch(config.batch_tokens // window, window + 1)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * lr_factor
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = loss_fn(self.model, tokens_BT.to(self.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.tokens += tokens_BT[:, 1:].numel()
        return loss.detach()

    def evaluate(self, seconds: float) -> None:
        """Score the held-out text and keep the weights if they are the best so far."""
        scores = score_all(self.model, self.parts)
        figures = ", ".join(f"{name} {s.perplexity:.2f}" for name, s in scores.items())
        log(f"held-out perplexity: {figures}")
        loss = scores["all"].loss
        self.progress.history.append([self.progress.step, round(seconds, 1), loss])
        if loss < self.progress.best:
            self.progress.best = loss
            weights = self.model.state_dict()
            self.progress.best_weights = {name: t.clone() for name, t in weights.items()}

    def save(self, seconds: float) -> None:
        """Write the checkpoint beside its final name, then move it there in one step."""
        self.progress.drawn, self.progress.seconds = self.sampler.drawn, seconds
        partial = self.path.with_suffix(".partial")
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {**vars(self.progress), "model": self.model.state_dict(), "optimizers": optimizers}
        torch.save(state, partial)
        partial.replace(self.path)


def run_to_end(run: Run, began: float) -> None:
    """Train until the budget is spent; `began` is when it began, on the monotonic clock."""
    config, progress = run.config, run.progress
    loss_fn = torch.compile(next_token_loss, dynamic=False) if config.compile else next_token_loss
    logged = evaluated = saved = time.monotonic()
    losses, logged_tokens = [], progress.tokens
    while True:
        seconds = time.monotonic() - began
        spent = spent_share(config, seconds, progress.step)
        if spent >= 1.0:
            break
        warm = min(1.0, (progress.step + 1) / config.warmup_steps)
        losses.append(run.step(loss_fn, lr_factor=warm * (1.0 - spent)))

        now = time.monotonic()
        seconds = now - began
        if now - logged >= LOG_SECONDS:
            rate = (progress.tokens - logged_tokens) / (now - logged)
            log(
                f"step {progress.step} loss {torch.stack(losses).mean().item():.3f} "
                f"{rate:,.0f} tokens/s elapsed {seconds:.0f} s "
                f"left {60 * config.minutes - seconds:.0f} s"
            )
            losses, logged_tokens, logged = [], progress.tokens, now
        if now - evaluated >= EVAL_SECONDS:
            run.evaluate(seconds)
            evaluated = time.monotonic()
        if now - saved >= CHECKPOINT_SECONDS:
            run.save(seconds)
            saved = time.monotonic()
    run.evaluate(seconds)
    run.save(time.monotonic() - began)


def train(config: TrainConfig) -> dict:
    """Train or go on from the checkpoint, write the model folder, return the report."""
    began = time.monotonic()
    config.checkpoint.mkdir(parents=True, exist_ok=True)
    files = read_paragraphs(config.data, config.boost, config.boost_factor)
    tokenizer_path = config.checkpoint / "tokenizer.json"
    if (config.checkpoint / "checkpoint.pt").exists():
        tokenizer = wrap_tokenizer(Tokenizer.from_file(str(tokenizer_path)))
    else:
        tokenizer = train_tokenizer(files, config.vocab)
        tokenizer.backend_tokenizer.save(str(tokenizer_path))
    corpus = build_corpus(files, tokenizer)
    texts = {
        "all": [text for file in files for text in file.held_out],
        "boosted": [text for file in files if file.boost > 1 for text in file.held_out],
    }
    parts = {k: windows_to_score(v, tokenizer, config.window) for k, v in texts.items() if v}

    run = Run(config, WindowSampler(corpus, config.seed), parts)
    model, progress = run.model, run.progress
    parameters = sum(p.numel() for p in model.parameters())
    log(f"{parameters:,} parameters, {len(corpus.ids_N):,} training tokens, step {progress.step}")
    # Time spent before an interruption counts towards the budget.
    run_to_end(run, began - progress.seconds)

    if progress.best_weights is not None:
        model.load_state_dict(progress.best_weights)
    model.half().float()  # what is measured is what is shipped
    if config.transfer:
        lines = map(json.loads, config.transfer.read_text(encoding="utf-8").splitlines())
        texts = [line["text"] + line["continuation"] for line in lines]
        parts = {**parts, "transfer": windows_to_score(texts, tokenizer, MAX_POSITIONS)}
    report = {
        "parameters": parameters,
        "steps": progress.step,
        "minutes": progress.seconds / 60,
        "tokens_seen": progress.tokens,
        "training_tokens": len(corpus.ids_N),
        "epochs": progress.tokens / len(corpus.ids_N),
        "scores": {name: s._asdict() for name, s in score_all(model, parts).items()},
        "history": progress.history,
        "config": {name: str(value) for name, value in asdict(config).items()},
    }
    write_model(config.out, model, tokenizer)
    (config.checkpoint / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def write_model(out: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write weights in float16, configuration and tokenizer to `out`, keeping its other files.

    A complete folder is made beside `out` and then takes its place.
    """
    partial, old = (out.with_name(f"{out.name}.{end}") for end in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    if out.exists():
        shutil.copytree(out, partial)
    model.generation_config = GenerationConfig(bos_token_id=BOS_ID, pad_token_id=PAD_ID)
    model.half().save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    settings = json.loads((partial / "config.json").read_text())
    settings.pop("_name_or_path", None)
    (partial / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    for path in partial.iterdir():
        path.chmod(0o644)
    if out.exists():
        out.replace(old)
    partial.replace(out)
    shutil.rmtree(old, ignore_errors=True)


# ---------------------------------------------------------------- command line


def log(line: str) -> None:
    """One line of progress on stderr."""
    print(line, file=sys.stderr, flush=True)


def parse_arguments(arguments: list[str] | None = None) -> TrainConfig:
    """The command line as a configuration: every field is an option, with its default."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    kinds = {"max_steps": int, "transfer": Path}
    for option in fields(TrainConfig):
        flag, default = "--" + option.name.replace("_", "-"), option.default
        kind = kinds.get(option.name, Path if isinstance(default, Path) else type(default))
        if kind is bool:
            parser.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=default, help="torch.compile"
            )
        else:
            parser.add_argument(flag, type=kind, default=default, help=kind.__name__)
    return TrainConfig(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    print(json.dumps(train(parse_arguments()), indent=1))
