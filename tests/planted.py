"""GPT-2 models whose circuits are known, because their weights are written by hand.

Two or three layers of four heads. Every model does one task on every prompt of its kind; the heads
that do it, and so the edges that the answer needs, are known from the construction. All other heads
and all MLPs are small random noise.

The residual stream. Width D = 2M: a vector of M coefficients u is stored as (R u, -R u) / sqrt(2)
with R a random rotation, so its mean is 0, LayerNorm only rescales it, and no direction is an axis
(`l1` would favour axes). The M coefficients are four named subspaces: the token (one-hot), the
position (one-hot), the previous token, and the answer, the only one that the head of the model
reads. LayerNorm has gain 1 and bias 0 and no sub-layer has a bias: a zero state stays silent.

Shape suffixes: M coefficients, D width, E head size, V vocabulary, P positions, T tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from graphtrace.layout import GraphLayout
from graphtrace.schema import ATTENTION, RESIDUAL

N_VOCAB, N_POSITIONS, N_HEADS, HEAD_SIZE = 20, 16, 4, 40
WIDTH = N_HEADS * HEAD_SIZE
NEVER = N_VOCAB - 1  # in no prompt
TOKEN, POSITION, PREVIOUS, ANSWER = (
    slice(0, 20),
    slice(20, 36),
    slice(36, 56),
    slice(56, 76),
)
NOISE = 0.015
"""Scale of the random weights of all other heads and of the MLPs."""

HEAD_SCALE = 0.75
"""How strongly the model's head reads the answer: the right token gets about 0.99."""

SHARP = 14.0
"""Attention logit of a written head's chosen key; the others get about 0."""

COPIER, LOUD, SECOND, SUPPRESSOR = 1, 3, 2, 2  # heads of the models that copy
EARLIER, INDUCTION = 2, 0  # heads of the induction model


class Edge(NamedTuple):
    """One edge; level is that of its target, head is -1 for a residual edge."""

    kind: int
    level: int
    head: int
    source: int
    target: int


def residuals(first: int, last: int, position: int) -> list[Edge]:
    """The residual edges of one token from level `first` up to level `last`."""
    return [Edge(RESIDUAL, g, -1, position, position) for g in range(first + 1, last + 1)]


def attention(layer: int, head: int, source: int, target: int) -> Edge:
    """A head's edge between two tokens, in a model of sequential blocks."""
    return Edge(ATTENTION, 2 * layer + 1, head, source, target)


class Weights:
    """A model of noise, and the pen to write heads into it. head_scale: how strongly the head of
    the model reads the answer."""

    def __init__(self, n_layers: int, seed: int, head_scale: float) -> None:
        self.random = torch.Generator().manual_seed(seed)
        n_half = WIDTH // 2
        rotation, _ = torch.linalg.qr(self.draw(n_half, n_half, dtype=torch.float64))
        basis_MD = torch.cat([rotation, -rotation], dim=1) / 2**0.5
        self.basis_MD = basis_MD.float()
        config = GPT2Config(
            vocab_size=N_VOCAB,
            n_positions=N_POSITIONS,
            n_embd=WIDTH,
            n_layer=n_layers,
            n_head=N_HEADS,
            n_inner=16,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.model = GPT2LMHeadModel(config).eval()
        for name, value in self.model.named_parameters():
            value.requires_grad_(False)
            if "ln_" in name:
                value.fill_(float(name.endswith("weight")))
            elif name.endswith("bias"):
                value.zero_()
            else:
                value.copy_(NOISE * self.draw(*value.shape))
        body = self.model.transformer
        body.wte.weight.copy_(self.basis_MD[TOKEN])
        body.wpe.weight.copy_(self.basis_MD[POSITION])
        self.model.lm_head.weight.copy_(head_scale * self.basis_MD[ANSWER])

    def draw(self, *shape: int, **options: Any) -> torch.Tensor:
        """Standard normal numbers of this model's own seed."""
        return torch.randn(*shape, generator=self.random, **options)

    def write_head(
        self,
        layer: int,
        head: int,
        query_ME: torch.Tensor,
        key_ME: torch.Tensor,
        value_ME: torch.Tensor,
        output_ED: torch.Tensor,
    ) -> None:
        """Replace one head: what its query, key and value read of the coefficients (after
        LayerNorm), and what it writes into the stream."""
        module: Any = self.model.transformer.h[layer].attn
        own = slice(head * HEAD_SIZE, (head + 1) * HEAD_SIZE)
        for third, read_ME in enumerate((query_ME, key_ME, value_ME)):
            columns = slice(own.start + third * WIDTH, own.stop + third * WIDTH)
            module.c_attn.weight[:, columns] = self.basis_MD.T @ read_ME
        module.c_proj.weight[own] = output_ED

    def into(self, subspace: slice, value: float) -> torch.Tensor:
        """[E, D]: a head that writes its one-hot value into a subspace with this coefficient,
        where the value was read from a token's or position's fresh embedding."""
        rows = self.basis_MD[subspace]
        output_ED = torch.zeros(HEAD_SIZE, WIDTH)
        output_ED[: len(rows)] = value * rows / normed(1.0, 2.0)
        return output_ED


def normed(coefficient: float, squares: float) -> float:
    """A coefficient after LayerNorm, in a state whose coefficients' squares sum to `squares`."""
    return coefficient * (WIDTH / squares) ** 0.5


def read(subspace: slice, scale: float = 1.0, shift: int = 0) -> torch.Tensor:
    """[M, E]: coefficient i of a subspace becomes entry i + shift of a head's vector."""
    n_entries = subspace.stop - subspace.start
    matrix_ME = torch.zeros(WIDTH // 2, HEAD_SIZE)
    for i in range(n_entries):
        if 0 <= i + shift < n_entries:
            matrix_ME[subspace.start + i, i + shift] = scale
    return matrix_ME


def sharp(squares: float) -> float:
    """Scale of a query that gives its one matching key the attention logit SHARP, where both
    states hold coefficients of 1 whose squares sum to `squares`."""
    return SHARP * HEAD_SIZE**0.5 / normed(1.0, squares) ** 2


@dataclass(frozen=True)
class Planted:
    """One hand-written model: its name, the heads that do the task, how to draw a prompt, the
    prompt's right answer, and the edges that the answer needs."""

    name: str
    causal_lm: GPT2LMHeadModel
    heads: tuple[tuple[int, int], ...]
    draw_prompt: Callable[[np.random.Generator], list[int]]
    answer: Callable[[list[int]], int]
    circuit: Callable[[list[int]], list[Edge]]
    passengers: Callable[[list[int]], list[Edge]] = lambda _: []
    """Edges of heads that are loud and useless."""

    def prompts(self, n: int, seed: int) -> list[list[int]]:
        """`n` random prompts."""
        random = np.random.default_rng(seed)
        return [self.draw_prompt(random) for _ in range(n)]

    def layout(self, prompt: list[int]) -> GraphLayout:
        """The graph of a prompt."""
        return GraphLayout(len(prompt), self.causal_lm.config.n_layer, N_HEADS)

    def without(self, *heads: tuple[int, int]) -> GPT2LMHeadModel:
        """A copy of the model with the output weights of some heads set to zero."""
        copy = GPT2LMHeadModel(self.causal_lm.config).eval().requires_grad_(False)
        copy.load_state_dict(self.causal_lm.state_dict())
        for layer, head in heads:
            module: Any = copy.transformer.h[layer].attn
            module.c_proj.weight[head * HEAD_SIZE : (head + 1) * HEAD_SIZE] = 0
        return copy


def edge_numbers(layout: GraphLayout, edges: list[Edge]) -> np.ndarray:
    """int64: where each edge stands in the layout's canonical order."""
    columns = zip(*(column.tolist() for column in layout.columns[:5]), strict=True)
    number = {edge: i for i, edge in enumerate(columns)}
    return np.array([number[tuple(edge)] for edge in edges])


# --- copy the previous token -----------------------------------------------------------------


def different_tokens(random: np.random.Generator) -> list[int]:
    """8 to 12 different tokens, NEVER not among them."""
    return random.permutation(NEVER)[: random.integers(8, 13)].tolist()


def before_last(prompt: list[int]) -> int:
    """The token before the last."""
    return prompt[-2]


def copy_edges(prompt: list[int]) -> list[Edge]:
    """The copier's edge and the residual edges that carry its answer up."""
    last = len(prompt) - 1
    return [attention(0, COPIER, last - 1, last), *residuals(1, 4, last)]


def write_previous_token(weights: Weights, head: int, subspace: slice, value: float) -> None:
    """A head of layer 0 that attends to the position before and writes that token."""
    before_ME = read(POSITION, sharp(2.0), -1)
    output_ED = weights.into(subspace, value)
    weights.write_head(0, head, before_ME, read(POSITION), read(TOKEN), output_ED)


def write_copier(weights: Weights, value: float) -> None:
    """The head that copies the previous token into the answer."""
    write_previous_token(weights, COPIER, ANSWER, value)


def copy_previous(seed: int) -> Planted:
    """Head 1 of layer 0 copies the previous token; nothing else matters."""
    weights = Weights(2, seed, HEAD_SCALE)
    write_copier(weights, 2.0)
    heads = ((0, COPIER),)
    return Planted("copy", weights.model, heads, different_tokens, before_last, copy_edges)


# --- induction -------------------------------------------------------------------------------


def repeated_token(random: np.random.Generator) -> list[int]:
    """8 to 12 tokens, all different but the last, which repeats an earlier one that is neither
    the first nor one of the two before the last."""
    tokens = different_tokens(random)
    return [*tokens[:-1], tokens[random.integers(1, len(tokens) - 3)]]


def after_earlier(prompt: list[int]) -> int:
    """The token after the earlier occurrence of the last token."""
    return prompt[prompt.index(prompt[-1]) + 1]


def induction_edges(prompt: list[int]) -> list[Edge]:
    """What makes the value (`value_edges`), the key and the query of the induction head.

    Key: the previous-token head's edge into y. Query: the last token's residual up to layer 2;
    its next edge, into the node that the induction head writes to, carries nothing that is used,
    but only through it does a search from the output come to the four below.
    """
    last, y = len(prompt) - 1, prompt.index(prompt[-1]) + 1
    return [*value_edges(prompt), attention(0, EARLIER, y - 1, y), *residuals(0, 5, last)]


def value_edges(prompt: list[int]) -> list[Edge]:
    """y's own residual up to layer 2, the induction head's edge, the residual to the output."""
    last, y = len(prompt) - 1, prompt.index(prompt[-1]) + 1
    return [*residuals(0, 4, y), attention(2, INDUCTION, y, last), *residuals(5, 6, last)]


def induction(seed: int) -> Planted:
    """... x y ... x -> y: a previous-token head in layer 0 writes at y that x came before; an
    induction head in layer 2 looks for it and copies y. Layer 1 is noise."""
    weights = Weights(3, seed, HEAD_SCALE)
    write_previous_token(weights, EARLIER, PREVIOUS, 1.0)
    # y's state is token, position and previous token: three coefficients of 1.
    weights.write_head(
        2,
        INDUCTION,
        read(TOKEN, sharp(3.0)),
        read(PREVIOUS),
        read(TOKEN),
        weights.into(ANSWER, 3.0),
    )
    heads = ((0, EARLIER), (2, INDUCTION))
    return Planted(
        "induction", weights.model, heads, repeated_token, after_earlier, induction_edges
    )


# --- heads that must be left out, or kept ----------------------------------------------------


def spread(layer: int, last: int, *heads: int) -> list[Edge]:
    """Everything that some heads of a layer bring to the last token."""
    return [attention(layer, head, source, last) for head in heads for source in range(last + 1)]


def write_loud(weights: Weights, head: int, direction_D: torch.Tensor, length: float) -> None:
    """A head of layer 1 that attends everywhere alike and writes the same vector at every token."""
    nothing_ME = torch.zeros(WIDTH // 2, HEAD_SIZE)
    any_token_ME = torch.zeros(WIDTH // 2, HEAD_SIZE)
    any_token_ME[TOKEN, 0] = 1.0
    output_ED = torch.zeros(HEAD_SIZE, WIDTH)
    output_ED[0] = length * direction_D / normed(1.0, 2.0)
    weights.write_head(1, head, nothing_ME, nothing_ME, any_token_ME, output_ED)


def with_loud_head(name: str, seed: int, centred: bool) -> Planted:
    """The copier, and a head of layer 1 whose vector, 20 times as long as the state, no weight
    reads."""
    # Where LayerNorm divides by the long vector too, the model's head makes up for it.
    weights = Weights(2, seed, HEAD_SCALE if centred else 22 * HEAD_SCALE)
    write_copier(weights, 2.0)
    direction_D = torch.ones(WIDTH) / WIDTH**0.5 if centred else weights.basis_MD[PREVIOUS][0]
    write_loud(weights, LOUD, direction_D, 100.0)
    return Planted(
        name,
        weights.model,
        ((0, COPIER),),
        different_tokens,
        before_last,
        copy_edges,
        lambda prompt: spread(1, len(prompt) - 1, LOUD),
    )


def unread(seed: int) -> Planted:
    """The loud vector is orthogonal to everything that is read later; only LayerNorm's scale, the
    same for all tokens of the vocabulary, knows of it."""
    return with_loud_head("unread", seed, centred=False)


def centred(seed: int) -> Planted:
    """The loud vector has the same number in every component, which LayerNorm takes out: leaving
    it out changes nothing at all."""
    return with_loud_head("centred", seed, centred=True)


def cancelling(seed: int) -> Planted:
    """The copier, and two heads of layer 1 that write opposite long vectors, for and against a
    token that is in no prompt: each alone drowns the answer, together they add nothing."""
    weights = Weights(2, seed, HEAD_SCALE)
    write_copier(weights, 2.0)
    for head, sign in ((SECOND, 1.0), (LOUD, -1.0)):
        write_loud(weights, head, weights.basis_MD[ANSWER][NEVER], sign * 100.0)
    return Planted(
        "cancelling",
        weights.model,
        ((0, COPIER),),
        different_tokens,
        before_last,
        copy_edges,
        lambda prompt: spread(1, len(prompt) - 1, SECOND, LOUD),
    )


def suppressor_edges(prompt: list[int]) -> list[Edge]:
    """The copier's circuit, the suppressor's edge, and the last token's own embedding, which sets
    the scale that the final LayerNorm divides by."""
    last = len(prompt) - 1
    return [
        *copy_edges(prompt),
        attention(0, SUPPRESSOR, last - 1, last),
        *residuals(0, 1, last),
    ]


def suppressor(seed: int) -> Planted:
    """The copier, and a head of layer 0 that writes against the copied token, less strongly: the
    right answer is still the most probable one, but less sure."""
    weights = Weights(2, seed, HEAD_SCALE)
    write_copier(weights, 2.0)
    write_previous_token(weights, SUPPRESSOR, ANSWER, -1.2)
    return Planted(
        "suppressor",
        weights.model,
        ((0, COPIER), (0, SUPPRESSOR)),
        different_tokens,
        before_last,
        suppressor_edges,
    )


MODELS = {
    "copy": copy_previous,
    "induction": induction,
    "unread": unread,
    "centred": centred,
    "cancelling": cancelling,
    "suppressor": suppressor,
}
"""How each model is made, by name: a function of a seed."""
