"""Load a causal language model, or take one already in memory, as a TracedModel.

A model in memory is used in place and left as found.
"""

import os
from pathlib import Path
from typing import Any

import torch

from graphtrace.errors import ModelError, OptionError
from graphtrace.families import family_of
from graphtrace.model_files import (
    ModelFiles,
    find_model,
    load_tokenizer,
    load_weights,
    unbuildable,
)
from graphtrace.model_files import demo_folder as demo_folder
from graphtrace.models import TracedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PLAIN = {torch.float64, *DTYPES.values()}

SPREAD = ("balanced", "balanced_low_0", "sequential")
"""Devices that mean several GPUs: accelerate's ways to spread a model over them."""


def load_model(
    model: Any,
    *,
    tokenizer: Any = None,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> TracedModel:
    """A TracedModel from a hub id, a local folder, `demo`, or a loaded Hugging Face causal LM.

    device: `auto` takes a GPU where there is one; `balanced`, `balanced_low_0` and `sequential`
    spread the layers over all GPUs as accelerate does; else as torch names devices. dtype: `auto`
    is float32 on a CPU and the checkpoint's own on a GPU; else float32, bfloat16 or float16.
    revision: a branch, tag or commit on the hub, such as a training checkpoint's. For a loaded
    model only `tokenizer` may be given: it is used in place and left as found.

    Raises ModelNotFoundError, UnsupportedFamilyError, ModelError, OptionError.
    """
    if not isinstance(model, str | os.PathLike):
        if (device, dtype, revision) != ("auto", "auto", None):
            raise OptionError("device, dtype and revision belong to a model that is loaded here")
        return _take_loaded(model, tokenizer)
    device_map, torch_dtype = _place(device, dtype)
    files = find_model(model, revision)
    causal_lm = load_weights(files, torch_dtype, device_map)
    _refuse_adapters(causal_lm)
    _check_whole(causal_lm, files.name)
    return _traced(files, causal_lm, tokenizer)


def load_outline(
    model: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> TracedModel:
    """What `load_model` would load, with its tokenizer but without weights: every parameter is on
    torch's `meta` device, where it has a shape and no memory. No weight file is read or fetched.

    Raises as `load_model` does, for what can be known without the weights.
    """
    _, torch_dtype = _place(device, dtype)
    files = find_model(model, revision)
    from transformers import AutoModelForCausalLM

    if torch_dtype == "auto":
        torch_dtype = getattr(files.config, "dtype", None) or torch.float32
    if getattr(files.config, "quantization_config", None):
        del files.config.quantization_config
    try:
        with torch.device("meta"):
            causal_lm = AutoModelForCausalLM.from_config(
                files.config, dtype=torch_dtype, trust_remote_code=False
            )
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise unbuildable(files, error) from error
    return _traced(files, causal_lm.eval(), tokenizer)


def _traced(files: ModelFiles, causal_lm: Any, tokenizer: Any) -> TracedModel:
    return TracedModel(
        causal_lm=causal_lm,
        tokenizer=tokenizer or load_tokenizer(files),
        family=files.family,
        name=files.name,
        revision=files.revision or "",
    )


def _take_loaded(causal_lm: Any, tokenizer: Any) -> TracedModel:
    config = getattr(causal_lm, "config", None)
    if not isinstance(causal_lm, torch.nn.Module) or config is None:
        raise ModelError(
            f"a model is a hub id, a folder, demo or a Hugging Face causal LM; got a "
            f"{type(causal_lm).__name__}"
        )
    _refuse_adapters(causal_lm)
    family = family_of(type(causal_lm).__name__, getattr(config, "model_type", ""), config)
    if causal_lm.training:
        raise ModelError(
            "this model is in training mode, so dropout is on; call model.eval() first"
        )
    path = str(getattr(config, "_name_or_path", "") or "")
    name = Path(path).name if path else family.name
    _check_whole(causal_lm, name)
    return TracedModel(
        causal_lm=causal_lm, tokenizer=tokenizer, family=family, name=name, revision=""
    )


def _refuse_adapters(causal_lm: Any) -> None:
    if hasattr(causal_lm, "peft_config") or hasattr(causal_lm, "merge_and_unload"):
        raise ModelError(
            "this model carries unmerged adapters; trace model.merge_and_unload() instead"
        )


def _check_whole(causal_lm: Any, name: str) -> None:
    """Raise ModelError unless every weight is a plain floating number in some device's memory."""
    parameters = dict(causal_lm.named_parameters())
    away = [key for key, value in parameters.items() if value.device.type == "meta"]
    if away:
        raise ModelError(
            f"{len(away)} of the {len(parameters)} parameters of {name} are offloaded, {away[0]!r} "
            "the first, and a traced model must be in memory as a whole; give it more GPUs "
            "(--device balanced), half the size (--dtype bfloat16) or --device cpu"
        )
    odd = [key for key, value in parameters.items() if value.dtype not in _PLAIN]
    if odd or getattr(causal_lm, "is_quantized", False):
        what = f"{odd[0]!r} is {parameters[odd[0]].dtype}" if odd else "its linear layers are"
        raise ModelError(
            f"{name} is quantised ({what}), and edges are scored from plain weights; take the "
            "model's float16 or bfloat16 version, or model.dequantize() where it has one"
        )


def _place(device: str, dtype: str) -> tuple[str, Any]:
    """The device and dtype as from_pretrained takes them. Raises OptionError."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device in SPREAD:
        if not gpus:
            raise OptionError(
                f"device {device!r} spreads a model over GPUs and there is none; use --device cpu"
            )
        kind = "cuda"
    else:
        try:
            found = torch.device(device)
        except RuntimeError as error:
            raise OptionError(
                f"device {device!r} is none of auto, cpu, cuda, cuda:N, {', '.join(SPREAD)} or "
                f"another device of torch"
            ) from error
        kind = found.type
        if kind == "cuda" and (found.index or 0) >= gpus:
            has = f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else "no GPU"
            raise OptionError(
                f"device {device!r} is not available, there is {has} here; use --device cpu"
            )
        if kind not in ("cpu", "cuda"):
            _try_device(device, kind)
    if dtype == "auto":
        return device, torch.float32 if kind == "cpu" else "auto"
    if dtype not in DTYPES:
        raise OptionError(f"dtype {dtype!r} is none of auto, {', '.join(DTYPES)}")
    return device, DTYPES[dtype]


def _try_device(device: str, kind: str) -> None:
    try:
        if kind == "meta":
            raise RuntimeError("the meta device holds no numbers")
        torch.zeros(1, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        first = str(error).splitlines()[0].partition(". ")[0]
        raise OptionError(f"device {device!r} is not available here: {first}") from error
