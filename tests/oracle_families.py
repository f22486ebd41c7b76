"""What every model family computes differently from Llama, in float64: half of the oracle.

Shapes: n tokens (rows), D width, H query heads, K key/value heads, E head size.
"""

import math

import torch
from oracle_decoder import Decoder, Norm, TwoLinear


class Mistral(Decoder):
    window_rule = "all"


class Qwen2(Decoder):
    window_rule = "types"


class Qwen3(Qwen2):
    head_norm = "head"


class Phi3(Mistral):
    def project(self, layer, x):
        fused = self.linear(x, self.attn(layer, "qkv_proj"))
        return fused.split([self.H * self.E, self.K * self.E, self.K * self.E], dim=-1)

    def mlp(self, layer, x):
        gate, up = self.linear(x, self.at(layer, "mlp.gate_up_proj")).chunk(2, dim=-1)
        return self.linear(self.act(gate) * up, self.at(layer, "mlp.down_proj"))


class Olmo2(Decoder):
    norm_names = (None, "post_attention_layernorm", None, "post_feedforward_layernorm")
    head_norm = "flat"


class Olmo3(Olmo2):
    window_rule = "types"


class Gemma2(Decoder):
    norm_names = (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )
    unit_offset = True
    window_rule = "types"
    activation_name = "hidden_activation"

    def __init__(self, w, c):
        super().__init__(w, c)
        self.scale = c.query_pre_attn_scalar**-0.5
        self.softcap = c.attn_logit_softcapping

    def embed(self, ids):
        return super().embed(ids) * math.sqrt(self.D)

    def head(self, x):
        logits, cap = super().head(x), self.c.final_logit_softcapping
        return logits if cap is None else cap * torch.tanh(logits / cap)


class Gemma3(Gemma2):
    head_norm = "head"

    def __init__(self, w, c):
        super().__init__(w, c)
        self.softcap = None


class GPT2(TwoLinear):
    stem, blocks, attention, output = "transformer.", "h", "attn", "c_proj"
    embedding, final = "wte", "ln_f"
    norm_names = ("ln_1", None, "ln_2", None)
    eps_name, activation_name = "layer_norm_epsilon", "activation_function"
    grouped = False
    mlp_names = ("mlp.c_fc", "mlp.c_proj")

    def linear(self, x, name):
        # Every linear map but the head is stored [in, out].
        if name == "lm_head":
            return super().linear(x, name)
        return x @ self.w[name + ".weight"] + self.w[name + ".bias"]

    def embed(self, ids):
        return super().embed(ids) + self.w["transformer.wpe.weight"][: len(ids)]

    def project(self, layer, x):
        return self.linear(x, self.attn(layer, "c_attn")).chunk(3, dim=-1)

    def qkv(self, layer, x):
        q, k, v = super().qkv(layer, x)
        if not self.c.scale_attn_weights:
            q = q / self.scale
        if self.c.scale_attn_by_inverse_layer_idx:
            q = q / (layer + 1)
        return q, k, v

    def rotates(self, layer):
        return False

    def output_weight(self, layer):
        weight = self.w[self.attn(layer, self.output) + ".weight"]
        return weight.T.reshape(self.D, self.H, -1)


class GPTNeoX(TwoLinear):
    stem, attention, output = "gpt_neox.", "attention", "dense"
    embedding, final = "embed_in", "final_layer_norm"
    eps_name = "layer_norm_eps"
    grouped = False
    mlp_names = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")

    def __init__(self, w, c):
        super().__init__(w, c)
        self.parallel = c.use_parallel_residual

    def project(self, layer, x):
        # Stored head by head: q, k and v of the first head, then of the second.
        fused = self.linear(x, self.attn(layer, "query_key_value"))
        parts = fused.reshape(len(x), self.H, 3, self.E)
        return tuple(parts[:, :, i].reshape(len(x), -1) for i in range(3))


class Phi(TwoLinear):
    output, final = "dense", "final_layernorm"
    norm_names = ("input_layernorm", None, "input_layernorm", None)
    eps_name = "layer_norm_eps"

    def __init__(self, w, c):
        super().__init__(w, c)
        self.parallel = True

    def project(self, layer, x):
        q, k, v = super().project(layer, x)
        if self.c.qk_layernorm:
            q, k = (
                self.norm(self.attn(layer, f"{name}_layernorm"))(y.reshape(len(x), -1, self.E))
                for name, y in (("q", q), ("k", k))
            )
        return q, k, v


class Cohere(Decoder):
    norm_names = ("input_layernorm", None, "input_layernorm", None)
    eps_name = "layer_norm_eps"
    centred, pairs = True, True

    def __init__(self, w, c):
        super().__init__(w, c)
        self.parallel = True
        # One gain per head.
        self.head_norm = "head" if getattr(c, "use_qk_norm", False) else None

    def head(self, x):
        return super().head(x) * self.c.logit_scale


class Cohere2(Cohere):
    window_rule = "types"

    def rotates(self, layer):
        return self.window(layer) is not None


class Mixtral(Mistral):
    gate = "mlp.gate"
    renormalised = True  # the chosen experts' probabilities add up to 1

    def experts(self, layer):
        return self.c.num_local_experts

    def route(self, layer, row):
        """[(expert, weight)] of one token."""
        probability = torch.softmax(self.linear(row, self.at(layer, self.gate)), dim=-1)
        weight, chosen = probability.topk(self.c.num_experts_per_tok)
        if self.renormalised:
            weight = weight / weight.sum()
        return list(zip(chosen.tolist(), weight, strict=True))

    def expert(self, layer, expert, row):
        names = ("gate_up_proj", "down_proj")
        gate_up, down = (self.w[self.at(layer, f"mlp.experts.{n}")][expert] for n in names)
        gate, up = (gate_up @ row).chunk(2)
        return down @ (self.act(gate) * up)

    def mlp(self, layer, x):
        rows = []
        for row in x:
            parts = [weight * self.expert(layer, i, row) for i, weight in self.route(layer, row)]
            rows.append(torch.stack(parts).sum(0))
        return torch.stack(rows)


class Qwen3Moe(Mixtral):
    head_norm = "head"

    def __init__(self, w, c):
        super().__init__(w, c)
        self.renormalised = c.norm_topk_prob

    def mlp(self, layer, x):
        dense = layer in self.c.mlp_only_layers or (layer + 1) % self.c.decoder_sparse_step
        return Decoder.mlp(self, layer, x) if dense else super().mlp(layer, x)


class GptOss(Mixtral):
    gate = "mlp.router"
    window_rule = "types"

    def sinks(self, layer):
        return self.w[self.attn(layer, "sinks")]

    def route(self, layer, row):
        logit, chosen = self.linear(row, self.at(layer, self.gate)).topk(self.c.num_experts_per_tok)
        return list(zip(chosen.tolist(), torch.softmax(logit, dim=-1), strict=True))

    def expert(self, layer, expert, row):
        def affine(x, name):
            name = self.at(layer, f"mlp.experts.{name}")
            return x @ self.w[name][expert] + self.w[name + "_bias"][expert]

        both, limit = affine(row, "gate_up_proj"), self.c.swiglu_limit
        gate, up = both[0::2].clamp(max=limit), both[1::2].clamp(-limit, limit)
        return affine((up + 1) * gate * torch.sigmoid(self.c.swiglu_alpha * gate), "down_proj")


class Granite(Decoder):
    def __init__(self, w, c):
        super().__init__(w, c)
        self.scale = c.attention_multiplier
        self.multiplier = c.residual_multiplier

    def embed(self, ids):
        return super().embed(ids) * self.c.embedding_multiplier

    def head(self, x):
        return super().head(x) / self.c.logits_scaling


class Glm4(Decoder):
    norm_names = (
        "input_layernorm",
        "post_self_attn_layernorm",
        "post_attention_layernorm",
        "post_mlp_layernorm",
    )
    pairs = True
    mlp = Phi3.mlp


class Exaone4(Decoder):
    norm_names = Olmo2.norm_names
    head_norm = "head"
    window_rule = "types"

    def rotates(self, layer):
        # Where local and global layers alternate, the global ones know no positions.
        return self.c.sliding_window is None or self.window(layer) is not None


class Opt(TwoLinear):
    stem, output, final = "model.decoder.", "out_proj", "final_layer_norm"
    norm_names = ("self_attn_layer_norm", None, "final_layer_norm", None)
    activation_name = "activation_function"
    grouped = False
    mlp_names = ("fc1", "fc2")

    def norm(self, name, eps=None):
        if name + ".weight" not in self.w:
            return Norm(torch.ones(self.D, dtype=torch.float64), None, 1e-5, True)
        return super().norm(name, eps=1e-5)

    def embed(self, ids):
        tokens = super().embed(ids)
        if "model.decoder.project_in.weight" in self.w:
            tokens = self.linear(tokens, "model.decoder.project_in")
        # The first two rows of the table belong to no position.
        return tokens + self.w["model.decoder.embed_positions.weight"][2 : len(ids) + 2]

    def rotates(self, layer):
        return False

    def head(self, x):
        if "model.decoder.project_out.weight" in self.w:
            x = self.linear(x, "model.decoder.project_out")
        return super().head(x)


class StableLm(Decoder):
    centred = True
    eps_name = "layer_norm_eps"

    def __init__(self, w, c):
        super().__init__(w, c)
        self.parallel = c.use_parallel_residual
        if self.parallel:
            self.norm_names = Phi.norm_names

    def project(self, layer, x):
        q, k, v = super().project(layer, x)
        if self.c.qk_layernorm:
            q, k = (self.by_head(layer, f"{name}_layernorm", y) for name, y in (("q", q), ("k", k)))
        return q, k, v

    def by_head(self, layer, name, x):
        """A norm of its own for every head."""
        heads = x.reshape(len(x), -1, self.E).unbind(1)
        norms = [self.norm(self.attn(layer, f"{name}.norms.{h}")) for h in range(len(heads))]
        return torch.stack([norm(y) for norm, y in zip(norms, heads, strict=True)], dim=1)


class Starcoder2(TwoLinear):
    eps_name = "norm_epsilon"
    window_rule = "all"
    mlp_names = ("mlp.c_fc", "mlp.c_proj")


class SmolLM3(Decoder):
    window_rule = "types"

    def rotates(self, layer):
        return bool(self.c.no_rope_layers[layer])


class Nemotron(TwoLinear):
    eps_name = "norm_eps"
    unit_offset = True
    mlp_names = ("mlp.up_proj", "mlp.down_proj")


FAMILIES = {
    "llama": Decoder,
    "mistral": Mistral,
    "qwen2": Qwen2,
    "qwen3": Qwen3,
    "phi3": Phi3,
    "olmo2": Olmo2,
    "olmo3": Olmo3,
    "gemma2": Gemma2,
    "gemma3_text": Gemma3,
    "gpt2": GPT2,
    "gpt_neox": GPTNeoX,
    "phi": Phi,
    "cohere": Cohere,
    "cohere2": Cohere2,
    "mixtral": Mixtral,
    "qwen3_moe": Qwen3Moe,
    "gpt_oss": GptOss,
    "granite": Granite,
    "glm4": Glm4,
    "exaone4": Exaone4,
    "opt": Opt,
    "stablelm": StableLm,
    "starcoder2": Starcoder2,
    "smollm3": SmolLM3,
    "nemotron": Nemotron,
}


def formulas(model):
    """The formulas of a Hugging Face model, by its configuration's `model_type`."""
    w = {k: v.detach().double() for k, v in model.state_dict().items()}
    return FAMILIES[model.config.model_type](w, model.config)
