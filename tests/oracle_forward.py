"""A plain float64 forward pass, edge by edge, from the weights alone: the independent oracle of
scores and masked evaluations. Every edge's vector is built and added one by one."""

import numpy as np


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


class OracleModel:
    """Weights and shape of a Hugging Face model of a sequential family, in float64."""

    def __init__(self, model):
        self.w = {k: v.detach().double().numpy() for k, v in model.state_dict().items()}
        self.config, self.family = model.config, model.config.model_type
        c = model.config
        self.L, self.H = c.num_hidden_layers, c.num_attention_heads
        self.K = c.num_key_value_heads
        self.E = getattr(c, "head_dim", None) or c.hidden_size // self.H
        self.eps = c.rms_norm_eps
        rope = c.rope_parameters
        rotary = int(self.E * rope.get("partial_rotary_factor", 1.0))
        self.inv_freq = 1.0 / rope["rope_theta"] ** (np.arange(0, rotary, 2) / rotary)
        act = {"silu": lambda x: x / (1 + np.exp(-x))}
        self.act = act[c.hidden_act]
        self.post_norm = self.family == "olmo2"
        if self.family in ("mistral", "phi3"):
            self.windows = [c.sliding_window] * self.L
        elif self.family in ("qwen2", "qwen3"):
            self.windows = [
                c.sliding_window if kind == "sliding_attention" else None for kind in c.layer_types
            ]
        else:
            self.windows = [None] * self.L

    def rms(self, x, name):
        return x / np.sqrt((x**2).mean() + self.eps) * self.w[name]

    def linear(self, x, name):
        y = self.w[name + ".weight"] @ x
        return y + self.w[name + ".bias"] if name + ".bias" in self.w else y

    def rotate(self, x, position):
        half = len(self.inv_freq)
        angle = position * self.inv_freq
        a, b, rest = x[:half], x[half : 2 * half], x[2 * half :]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest])

    def qkv(self, layer, x, t):
        p = f"model.layers.{layer}.self_attn."
        if self.family == "phi3":
            all_ = self.linear(x, p + "qkv_proj")
            q, k, v = np.split(all_, [self.H * self.E, (self.H + self.K) * self.E])
        else:
            q, k, v = (self.linear(x, p + f"{n}_proj") for n in "qkv")
        if self.family == "olmo2":
            q, k = self.rms(q, p + "q_norm.weight"), self.rms(k, p + "k_norm.weight")
        q, k, v = q.reshape(self.H, -1), k.reshape(self.K, -1), v.reshape(self.K, -1)
        if self.family == "qwen3":
            q = [self.rms(h, p + "q_norm.weight") for h in q]
            k = [self.rms(h, p + "k_norm.weight") for h in k]
        return [self.rotate(h, t) for h in q], [self.rotate(h, t) for h in k], v

    def mlp(self, layer, x):
        p = f"model.layers.{layer}.mlp."
        if self.family == "phi3":
            gate, up = np.split(self.linear(x, p + "gate_up_proj"), 2)
        else:
            gate, up = self.linear(x, p + "gate_proj"), self.linear(x, p + "up_proj")
        return self.linear(self.act(gate) * up, p + "down_proj")

    def run(self, ids, keep=None):
        """(final states [T, D], edge vectors {(kind, level, head, source, target): vector}, node
        values {(level, t): vector}, o_proj biases as added {(level, t): vector}, logits).

        keep(kind, level, head, source, target) -> bool; edge vectors are those of the masked run
        for kept edges only. Post-norms are linearised at this run for the edge vectors.
        """
        keep = keep or (lambda *edge: True)
        w, n = self.w, len(ids)
        x = [w["model.embed_tokens.weight"][i] for i in ids]
        vectors, nodes, biases = {}, {(0, t): x[t] for t in range(n)}, {}
        for layer in range(self.L):
            p, mid, post = f"model.layers.{layer}.", 2 * layer + 1, 2 * layer + 2
            normed = x if self.post_norm else [self.rms(v, p + "input_layernorm.weight") for v in x]
            qkv = [self.qkv(layer, normed[t], t) for t in range(n)]
            w_o = w[p + "self_attn.o_proj.weight"].reshape(-1, self.H, self.E)
            b_o = w.get(p + "self_attn.o_proj.bias", np.zeros(len(x[0])))
            after = []
            for t in range(n):
                start = max(0, t + 1 - (self.windows[layer] or n))
                total, own = np.zeros_like(x[t]), {}
                for h in range(self.H):
                    kv = h * self.K // self.H
                    logits = [qkv[t][0][h] @ qkv[s][1][kv] for s in range(start, t + 1)]
                    a = softmax(np.array(logits) / np.sqrt(self.E))
                    for s in range(start, t + 1):
                        if keep("attention", mid, h, s, t):
                            own[h, s] = a[s - start] * (w_o[:, h] @ qkv[s][2][kv])
                            total = total + own[h, s]
                bias = b_o if own else 0 * b_o
                total = total + bias
                scale = np.ones_like(total)
                if self.post_norm:
                    name = p + "post_attention_layernorm.weight"
                    scale = w[name] / np.sqrt((total**2).mean() + self.eps)
                for (h, s), vector in own.items():
                    vectors["attention", mid, h, s, t] = vector * scale
                value = total * scale
                biases[mid, t] = bias * scale
                if keep("residual", mid, -1, t, t):
                    vectors["residual", mid, -1, t, t] = x[t]
                    value = value + x[t]
                after.append(value)
                nodes[mid, t] = value
            x = []
            for t in range(n):
                value = np.zeros_like(after[t])
                if keep("mlp", post, -1, t, t):
                    normed = (
                        after[t]
                        if self.post_norm
                        else self.rms(after[t], p + "post_attention_layernorm.weight")
                    )
                    added = self.mlp(layer, normed)
                    if self.post_norm:
                        added = self.rms(added, p + "post_feedforward_layernorm.weight")
                    vectors["mlp", post, -1, t, t] = added
                    value = value + added
                if keep("residual", post, -1, t, t):
                    vectors["residual", post, -1, t, t] = after[t]
                    value = value + after[t]
                x.append(value)
                nodes[post, t] = value
        head = w["lm_head.weight"] if "lm_head.weight" in w else w["model.embed_tokens.weight"]
        logits = head @ self.rms(x[-1], "model.norm.weight")
        return vectors, nodes, biases, logits

    def l1_scores(self, ids):
        """Share of every edge: {(kind, level, head, source, target): score} in float64."""
        vectors, nodes, _, _ = self.run(ids)
        last = (2 * self.L, len(ids) - 1)
        weight = {}
        for edge, vector in vectors.items():
            if (edge[1], edge[4]) == last:
                y = nodes[last]
                gain = self.w["model.norm.weight"] / np.sqrt((y**2).mean() + self.eps)
                vector = vector * gain
            weight[edge] = np.abs(vector).sum()
        total = {}
        for (_, level, _, _, t), value in weight.items():
            total[level, t] = total.get((level, t), 0) + value
        return {e: v / total[e[1], e[4]] if total[e[1], e[4]] else 0 for e, v in weight.items()}
