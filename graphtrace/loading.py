"""Load a causal language model, or take one already in memory, as a TracedModel.

Safetensors only, no remote code. A model in memory is used in place and left as found.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from graphtrace.errors import ModelError, ModelNotFoundError, OptionError
from graphtrace.families import family_of
from graphtrace.models import TracedModel

DEMO = "demo"
"""Name of the bundled model."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def demo_folder() -> Path:
    """Folder of the bundled model and its sentences."""
    return Path(__file__).parent / "demo"


def load_model(
    model: Any,
    *,
    tokenizer: Any = None,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> TracedModel:
    """A TracedModel from a hub id, a local folder, `demo`, or a loaded Hugging Face causal LM.

    device: `auto` takes a GPU where there is one; else as torch names devices. dtype: `auto` is
    float32 on a CPU and the checkpoint's own on a GPU; else float32, bfloat16 or float16. For a
    loaded model only `tokenizer` may be given: it is used in place and left as found.

    Raises ModelNotFoundError, UnsupportedFamilyError, ModelError, OptionError.
    """
    if not isinstance(model, str | os.PathLike):
        if (device, dtype, revision) != ("auto", "auto", None):
            raise OptionError("device, dtype and revision belong to a model that is loaded here")
        return _take_loaded(model, tokenizer)
    name = os.path.expanduser(model)  # noqa: PTH111  Path would spoil a hub id
    source = str(demo_folder()) if name == DEMO else name
    device, torch_dtype = _place(device, dtype)
    config = _load_config(source, revision)
    class_name = (getattr(config, "architectures", None) or [""])[0]
    family = family_of(class_name, getattr(config, "model_type", ""))
    causal_lm = _load_weights(source, config, revision, torch_dtype).to(device).eval()
    local = Path(source).is_dir()
    return TracedModel(
        causal_lm=causal_lm,
        tokenizer=tokenizer or _load_tokenizer(source, revision),
        family=family,
        name=name if name == DEMO else (Path(source).resolve().name if local else name),
        revision="" if local else (getattr(config, "_commit_hash", None) or revision or ""),
    )


def _take_loaded(causal_lm: Any, tokenizer: Any) -> TracedModel:
    if hasattr(causal_lm, "peft_config") or hasattr(causal_lm, "merge_and_unload"):
        raise ModelError(
            "this model carries unmerged adapters; trace model.merge_and_unload() instead"
        )
    config = getattr(causal_lm, "config", None)
    family = family_of(type(causal_lm).__name__, getattr(config, "model_type", ""))
    if causal_lm.training:
        raise ModelError(
            "this model is in training mode, so dropout is on; call model.eval() first"
        )
    path = str(getattr(config, "_name_or_path", "") or "")
    return TracedModel(
        causal_lm=causal_lm,
        tokenizer=tokenizer,
        family=family,
        name=Path(path).name if path else family.name,
        revision="",
    )


def _place(device: str, dtype: str) -> tuple[str, Any]:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise OptionError(f"device {device!r}: {error}") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"device {device!r} is not available here; use --device cpu")
    if dtype == "auto":
        return device, torch.float32 if kind == "cpu" else "auto"
    if dtype not in DTYPES:
        raise OptionError(f"dtype {dtype!r} is none of auto, {', '.join(DTYPES)}")
    return device, DTYPES[dtype]


def _load_config(source: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    folder = Path(source)
    looks_local = folder.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1
    if not folder.is_dir() and (looks_local or folder.exists()):
        raise ModelNotFoundError(
            f"no model folder {source!r}; give a folder with config.json, a hub id such as "
            "org/name, or demo"
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"folder {source!r} holds no config.json, so it is no model")
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False, **_revision(revision))
    except (OSError, ValueError, KeyError) as error:
        if folder.is_dir():
            raise ModelError(f"the config.json in {source!r} cannot be read: {error}") from error
        raise ModelNotFoundError(
            f"model {source!r} is neither a local folder nor reachable on the hub: {error}"
        ) from error


def _load_weights(source: str, config: Any, revision: str | None, dtype: Any) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        with _quiet_loading():
            found: Any = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **_revision(revision),
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"the weights of {source!r} cannot be loaded (safetensors only): {error}"
        ) from error
    causal_lm, loaded = found
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise ModelError(
            f"the weights of {source!r} lack {len(missing)} parameters, {missing[0]!r} the first; "
            "they would be random numbers"
        )
    return causal_lm


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """No progress bar and no report of the loader: what matters is raised."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _load_tokenizer(source: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **_revision(revision))
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"the tokenizer of {source!r} cannot be loaded: {error}") from error


def _revision(revision: str | None) -> dict[str, str]:
    return {"revision": revision} if revision else {}
