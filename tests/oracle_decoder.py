"""What one sub-layer of a Llama-like decoder computes, in float64, from weights and configuration.

`oracle_families.py` states what every other family does differently; `oracle_forward.py` adds the
edges up. Nothing here calls a model's own code or graphtrace's.

Shapes: n tokens (rows), D width, H query heads, K key/value heads, E head size.
"""

import math
from dataclasses import dataclass

import torch


def _gelu_tanh(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": lambda x: x.clamp(min=0),
    "relu2": lambda x: x.clamp(min=0) ** 2,
}


@dataclass
class Norm:
    """RMSNorm, or LayerNorm when `centred`, over the last axis."""

    gain: torch.Tensor
    bias: torch.Tensor | None
    eps: float
    centred: bool

    def linear_part(self, vector, at):
        """The norm as a linear map of `vector` with its statistics taken at `at`; no bias."""
        if self.centred:
            vector = vector - vector.mean(-1, keepdim=True)
            at = at - at.mean(-1, keepdim=True)
        return vector * self.gain / ((at**2).mean(-1, keepdim=True) + self.eps).sqrt()

    def __call__(self, x):
        normed = self.linear_part(x, x)
        return normed if self.bias is None else normed + self.bias


class Decoder:
    """Llama's formulas; every other family states what it does differently."""

    stem, blocks, attention, output = "model.", "layers", "self_attn", "o_proj"
    embedding, final = "embed_tokens", "norm"
    # In front of attention, behind it, in front of the MLP, behind it.
    norm_names = ("input_layernorm", None, "post_attention_layernorm", None)
    eps_name = "rms_norm_eps"
    centred = False
    unit_offset = False  # the gain is 1 + weight
    pairs = False  # rotary turns neighbouring entries instead of the two halves
    grouped = True  # has key/value heads of its own
    window_rule = None  # None, "all" layers, or those of `layer_types`
    head_norm = None  # None, "flat" over all heads, or "head"
    multiplier = 1.0  # on what each sub-layer adds
    activation_name = "hidden_act"

    def __init__(self, w, c):
        self.w, self.c = w, c
        self.L, self.H = c.num_hidden_layers, c.num_attention_heads
        self.K = c.num_key_value_heads if self.grouped else self.H
        self.D = c.hidden_size
        self.E = getattr(c, "head_dim", None) or self.D // self.H
        self.scale = self.E**-0.5
        self.softcap = None
        self.parallel = False
        self.act = ACTIVATIONS[getattr(c, self.activation_name)]

    # Weights by name

    def at(self, layer, name):
        return f"{self.stem}{self.blocks}.{layer}.{name}"

    def attn(self, layer, name):
        return self.at(layer, f"{self.attention}.{name}")

    def linear(self, x, name):
        y = x @ self.w[name + ".weight"].T
        return y + self.w[name + ".bias"] if name + ".bias" in self.w else y

    def norm(self, name, eps=None):
        eps = getattr(self.c, self.eps_name) if eps is None else eps
        gain = self.w[name + ".weight"]
        return Norm(
            1 + gain if self.unit_offset else gain, self.w.get(name + ".bias"), eps, self.centred
        )

    # In front of the blocks and behind them

    def embed(self, ids):
        return self.w[f"{self.stem}{self.embedding}.weight"][ids]

    def final_norm(self):
        return self.norm(self.stem + self.final)

    def head(self, x):
        return self.linear(x, "lm_head")

    # Inside a block

    def norms(self, layer):
        return [name and self.norm(self.at(layer, name)) for name in self.norm_names]

    def project(self, layer, x):
        """q [n, H·E], k and v [n, K·E]."""
        return tuple(self.linear(x, self.attn(layer, f"{name}_proj")) for name in "qkv")

    def qkv(self, layer, x):
        """q [n, H, E], k and v [n, K, E]; q and k turned by their positions."""
        n = len(x)
        q, k, v = self.project(layer, x)
        if self.head_norm == "flat":
            q = self.norm(self.attn(layer, "q_norm"))(q)
            k = self.norm(self.attn(layer, "k_norm"))(k)
        q, k, v = q.reshape(n, self.H, -1), k.reshape(n, self.K, -1), v.reshape(n, self.K, -1)
        if self.head_norm == "head":
            q = self.norm(self.attn(layer, "q_norm"))(q)
            k = self.norm(self.attn(layer, "k_norm"))(k)
        return self.rotate(layer, q), self.rotate(layer, k), v

    def rotates(self, layer):
        return True

    def frequencies(self, layer):
        """(angle per position [rotary / 2], factor on cosine and sine)."""
        rope = self.c.rope_parameters
        if "full_attention" in rope:
            rope = rope[self.c.layer_types[layer]]
        size = int(self.E * rope.get("partial_rotary_factor", 1.0))
        step = torch.arange(0, size, 2, dtype=torch.float64) / size
        plain = rope["rope_theta"] ** -step
        if rope["rope_type"] == "default":
            return plain, 1.0
        assert rope["rope_type"] == "yarn", rope
        # YaRN (arXiv 2309.00071): interpolate what turns less than beta_slow times over the
        # original context, extrapolate what turns more than beta_fast times, a ramp between.
        length, theta = rope["original_max_position_embeddings"], rope["rope_theta"]
        ends = [
            size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))
            for turns in (rope["beta_fast"], rope["beta_slow"])
        ]
        if rope.get("truncate", True):
            ends = [math.floor(ends[0]), math.ceil(ends[1])]
        low, high = max(ends[0], 0), min(ends[1], size - 1)
        ramp = (torch.arange(size // 2, dtype=torch.float64) - low) / (high - low)
        interpolated = ramp.clamp(0, 1)
        angle = plain / rope["factor"] * interpolated + plain * (1 - interpolated)
        return angle, 0.1 * math.log(rope["factor"]) + 1

    def rotate(self, layer, x):
        """x [n, heads, E]."""
        if not self.rotates(layer):
            return x
        step, factor = self.frequencies(layer)
        angle = torch.arange(len(x), dtype=torch.float64)[:, None, None] * step
        cos, sin = factor * angle.cos(), factor * angle.sin()
        half = len(step)
        turned = x.clone()
        first = slice(0, 2 * half, 2) if self.pairs else slice(0, half)
        second = slice(1, 2 * half, 2) if self.pairs else slice(half, 2 * half)
        turned[..., first] = x[..., first] * cos - x[..., second] * sin
        turned[..., second] = x[..., second] * cos + x[..., first] * sin
        return turned

    def window(self, layer):
        """How many keys a query sees, itself included; None for all."""
        if self.window_rule is None:
            return None
        if self.window_rule == "types" and self.c.layer_types[layer] != "sliding_attention":
            return None
        return self.c.sliding_window

    def sinks(self, layer):
        """A logit per head that takes part in the softmax only; None where there is none."""
        return None

    def output_weight(self, layer):
        """[D, H, E]."""
        weight = self.w[self.attn(layer, self.output) + ".weight"]
        return weight.reshape(self.D, self.H, -1)

    def output_bias(self, layer):
        name = self.attn(layer, self.output) + ".bias"
        return self.w.get(name, torch.zeros(self.D, dtype=torch.float64))

    def mlp(self, layer, x):
        gate, up = (self.linear(x, self.at(layer, f"mlp.{name}_proj")) for name in ("gate", "up"))
        return self.linear(self.act(gate) * up, self.at(layer, "mlp.down_proj"))


class TwoLinear(Decoder):
    """An MLP of two linear maps, norms with centring."""

    centred = True
    mlp_names = ("mlp.fc1", "mlp.fc2")

    def mlp(self, layer, x):
        up, down = (self.at(layer, name) for name in self.mlp_names)
        return self.linear(self.act(self.linear(x, up)), down)
