"""What an edge contributes on average over a reference corpus, for the `mean` ablation.

Per (layer, head) the mean of a[h,t,s] W_O^h v[h,s] over all (t, s) that attention sees, per layer
the mean MLP output over all tokens, both before any post-norm and the block's multiplier (method.md
4). One safetensors file holds them with where they come from.

Shape suffixes: L layers, H heads, D width, T tokens, E head size.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import graphtrace
from graphtrace import schema
from graphtrace.errors import InputError, ModelError, NonFiniteError, OptionError
from graphtrace.files import replacing
from graphtrace.forward import LayerRecord, Means, run_model
from graphtrace.incoming import output_weight
from graphtrace.models import TracedModel
from graphtrace.progress import progress
from graphtrace.tokenizing import TEXT_DEFAULTS, TextOptions, check_text_options, tokenize
from graphtrace.traces import short_hash


@dataclass(frozen=True)
class Provenance:
    """Where reference means come from. failed: inputs that could not be read by the model."""

    model: str
    corpus: str
    n_inputs: int
    n_failed: int
    n_tokens: int
    inputs: str
    method: int = schema.METHOD
    version: str = graphtrace.__version__


@dataclass(frozen=True)
class ReferenceMeans:
    """Mean edge vectors of a model, float32, and their provenance."""

    means: Means
    provenance: Provenance

    @property
    def id(self) -> str:
        """'m' + 8 hex of everything in the provenance but the version that wrote it."""
        known = {k: v for k, v in asdict(self.provenance).items() if k != "version"}
        return short_hash(known, "m", 8)

    def check(self, model: TracedModel) -> None:
        """Raise OptionError where these are another model's means."""
        if self.provenance.model != model.info.id:
            raise OptionError(
                f"the reference means are of {self.provenance.model}, and the model is "
                f"{model.info.id}; make its own with `graphtrace reference-means`"
            )


class _Sums:
    """Sums over inputs, in float64."""

    def __init__(self, model: TracedModel) -> None:
        self.model = model
        shape = (model.n_layers, model.n_heads, model.d_model)
        self.attention_LHD = torch.zeros(shape, dtype=torch.float64)
        self.mlp_LD = torch.zeros(shape[0], shape[2], dtype=torch.float64)
        self.n_pairs_L = torch.zeros(shape[0], dtype=torch.float64)
        self.n_tokens = 0

    def layer(self, record: LayerRecord) -> None:
        layer, block = record.layer, self.model.blocks[record.layer]
        probs_HTS, value_KSE = record.probs_BHTS[0].float(), record.value_BKSE[0].float()
        group = len(probs_HTS) // len(value_KSE)
        value_HSE = value_KSE.repeat_interleave(group, dim=0)
        read_HE = torch.einsum("hts,hse->he", probs_HTS, value_HSE)
        weight_HED = output_weight(self.model, block, multiplied=False)
        vector_HD = torch.einsum("he,hed->hd", read_HE, weight_HED)
        mlp_D = record.mlp_sum_BTD[0].float().sum(0)
        if not (torch.isfinite(vector_HD).all() and torch.isfinite(mlp_D).all()):
            raise NonFiniteError(f"NaN or infinity in layer {layer} of {self.model.name}")
        self.attention_LHD[layer] += vector_HD.double().cpu()
        self.mlp_LD[layer] += mlp_D.double().cpu()
        n = probs_HTS.shape[1]
        window = self.model.windows[layer] if self.model.windows else None
        self.n_pairs_L[layer] += sum(min(t + 1, window or n) for t in range(n))


def reference_means(
    model: TracedModel,
    inputs: Iterable[Any],
    corpus: str = "",
    show_progress: bool = False,
    *,
    bos: str = TEXT_DEFAULTS.bos,
    chat: bool = TEXT_DEFAULTS.chat,
    system: str | None = TEXT_DEFAULTS.system,
) -> ReferenceMeans:
    """Mean edge vectors over `inputs` (texts, chats, token ids or Inputs), each (target, source)
    pair and each token counting once, however long its text.

    bos, chat, system: see `tokenizing.TextOptions`; best those of the texts that are traced. An
    input that cannot be read is counted as failed. Raises InputError when none can, OptionError.
    """
    options = TextOptions(bos, chat, system)
    check_text_options(model, options)
    total, names, failed = _Sums(model), [], 0
    todo = list(inputs)
    with progress("reference-means", len(todo), "inputs", show_progress) as advance:
        for item in todo:
            try:
                tokens = tokenize(model, item, options=options)
                one = _Sums(model)
                ids_BT = torch.as_tensor(tokens.token_ids[None].astype("int64"))
                run_model(model, ids_BT.to(model.device), observer=one)
            except (InputError, NonFiniteError):
                failed += 1
            else:
                names.append([int(token) for token in tokens.token_ids])
                total.attention_LHD += one.attention_LHD
                total.mlp_LD += one.mlp_LD
                total.n_pairs_L += one.n_pairs_L
                total.n_tokens += len(tokens.token_ids)
            advance()
    if not names:
        raise InputError("no input could be read, so there are no reference means")
    means = Means(
        (total.attention_LHD / total.n_pairs_L[:, None, None]).float(),
        (total.mlp_LD / total.n_tokens).float(),
    )
    made_of = Provenance(
        model=model.info.id,
        corpus=corpus,
        n_inputs=len(names),
        n_failed=failed,
        n_tokens=total.n_tokens,
        inputs=short_hash(names, "", 16),
    )
    return ReferenceMeans(means, made_of)


def save_means(found: ReferenceMeans, path: str | Path) -> None:
    """Write a safetensors file, whole or not at all."""
    from safetensors.torch import save

    tensors = {"attention": found.means.attention_LHD, "mlp": found.means.mlp_LD}
    data = save(tensors, metadata={"graphtrace": json.dumps(asdict(found.provenance))})
    with replacing(path) as file:
        file.write(data)


def load_means(path: str | Path) -> ReferenceMeans:
    """Read what `save_means` wrote. Raises ModelError for a file that is something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            provenance = json.loads((file.metadata() or {})["graphtrace"])
            means = Means(file.get_tensor("attention"), file.get_tensor("mlp"))
            return ReferenceMeans(means, Provenance(**provenance))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{str(path)!r} holds no reference means ({error}); make them with "
            "`graphtrace reference-means`"
        ) from error
