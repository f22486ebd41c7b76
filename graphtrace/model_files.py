"""The files of a model, in a folder or on the hub: its configuration, weights and tokenizer.

Safetensors only, no remote code; what is missing or cannot be used is named in one line. Weights
go one tensor at a time from the file to where they stay: the host never holds a GPU's model, and
a bfloat16 checkpoint that is read as float32 is never there in both forms.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from graphtrace.errors import ModelError, ModelNotFoundError, OptionError
from graphtrace.families import Family, family_of
from graphtrace.hub import hub_error

DEMO = "demo"
"""Name of the bundled model."""

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def demo_folder() -> Path:
    """Folder of the bundled model and its sentences."""
    return Path(__file__).parent / "demo"


class ModelFiles(NamedTuple):
    """A model that was found. path: what transformers takes; revision: the commit, None where the
    model is a folder."""

    name: str
    path: str
    revision: str | None
    config: Any
    family: Family

    @property
    def local(self) -> bool:
        """Whether it is a folder."""
        return self.revision is None

    @property
    def where(self) -> dict[str, str]:
        """Arguments of from_pretrained: all files of one model come from one commit."""
        return {"revision": self.revision} if self.revision else {}


def find_model(model: str | os.PathLike[str], revision: str | None) -> ModelFiles:
    """The model's configuration and family, and the commit that its other files are read from.

    model: hub id, folder or `demo`. Raises ModelNotFoundError, UnsupportedFamilyError, ModelError,
    OptionError.
    """
    name = os.path.expanduser(model)  # noqa: PTH111  Path would spoil a hub id
    if not str(name).strip():
        raise OptionError("--model is empty; give a hub id such as org/name, a folder, or demo")
    path = str(demo_folder()) if name == DEMO else name
    local = Path(path).is_dir()
    if local and revision is not None:
        what = "bundled with graphtrace" if name == DEMO else "a folder"
        raise OptionError(
            f"--revision {revision!r} is for models on the hub, and {name!r} is {what}; leave it "
            "out"
        )
    commit = None if local else _commit(path, revision)
    config = _load_config(path, commit)
    return ModelFiles(
        name=name if name == DEMO else (Path(path).resolve().name if local else name),
        path=path,
        revision=commit,
        config=config,
        family=family_of(_class_of(config), getattr(config, "model_type", ""), config),
    )


def _commit(name: str, revision: str | None) -> str:
    """The commit that a revision of a hub model names now; its config.json is fetched."""
    from transformers.utils.hub import cached_file

    _check_folder(name, Path(name))
    where = {"revision": revision} if revision else {}
    try:
        file = cached_file(name, "config.json", **where)
    except (OSError, ValueError) as error:
        raise hub_error(name, revision, error) from error
    found = re.search(r"/snapshots/([0-9a-f]{40})/", Path(str(file)).as_posix())
    assert found, f"{file} is no file of a hub cache"
    return found[1]


def _class_of(config: Any) -> str:
    """Name of the class that AutoModelForCausalLM builds; else what the configuration says."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    built = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(getattr(config, "model_type", ""))
    return built or (getattr(config, "architectures", None) or [""])[0]


def _load_config(path: str, commit: str | None) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, PreTrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if commit is None:
        _check_folder(path, Path(path))
    where = {"revision": commit} if commit else {}
    try:
        raw: dict[str, Any] = PreTrainedConfig.get_config_dict(path, **where)[0]
        if not isinstance(raw, dict):
            raise ModelError(f"the config.json of {path!r} holds no object, so it is no model")
        kind = raw.get("model_type")
        if kind is not None and kind not in CONFIG_MAPPING:
            if "auto_map" in raw:
                raise ModelError(
                    f"model {path!r} needs Python code of its own (auto_map in its config.json), "
                    "which is never run here; take a version that transformers itself knows"
                )
            family_of((raw.get("architectures") or [""])[0], kind)  # raises: it is no family
        if kind is None:
            raise ModelError(f"the config.json of {path!r} has no model_type, so it is no model")
        _refuse_quantised(path, raw)
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, **where)
        if getattr(config, "num_hidden_layers", 1) < 1:
            raise ModelError(f"the config.json of {path!r} gives the model no layer")
        return config
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise ModelError(f"the config.json of {path!r} cannot be read: {error}") from error


def _check_folder(path: str, folder: Path) -> None:
    """Raise ModelNotFoundError for what looks like a folder and holds no model."""
    looks_local = folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1
    if not folder.is_dir():
        if looks_local or folder.exists():
            what = " (it is a file)" if folder.exists() else ""
            raise ModelNotFoundError(
                f"no model folder {path!r}{what}; give a folder with config.json, a hub id such as "
                "org/name, or demo"
            )
        return
    if (folder / "config.json").is_file():
        return
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"folder {path!r} holds an adapter and no model; merge it into its base model "
            "(merge_and_unload), save that, and trace it"
        )
    inside = sorted(child.parent.name for child in folder.glob("*/config.json"))
    hint = f"; did you mean {str(folder / inside[-1])!r}?" if inside else ""
    if not inside and any(folder.glob("*.gguf")):
        hint = "; GGUF files are not read, take the safetensors version"
    raise ModelNotFoundError(f"folder {path!r} holds no config.json, so it is no model{hint}")


def _refuse_quantised(path: str, raw: dict[str, Any]) -> None:
    quantised = raw.get("quantization_config")
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    # mxfp4 is how gpt-oss is published; it is unpacked while it is loaded.
    if quantised and method != "mxfp4":
        raise ModelError(
            f"model {path!r} is quantised ({method or 'quantization_config in config.json'}), and "
            "edges are scored from plain weights; take its float16 or bfloat16 version"
        )


def load_weights(files: ModelFiles, dtype: Any, device: str) -> Any:
    """The Hugging Face causal LM in eval mode, on a device or spread over several.

    dtype: a torch dtype, or `auto` for the checkpoint's. Raises ModelError.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import Mxfp4Config

    if files.local:
        _check_weight_files(files)
    extra: dict[str, Any] = dict(files.where)
    if device != "cpu":
        extra["device_map"] = device
    if getattr(files.config, "quantization_config", None):
        extra["quantization_config"] = Mxfp4Config(dequantize=True)
    try:
        with _quiet_loading():
            found: Any = AutoModelForCausalLM.from_pretrained(
                files.path,
                config=files.config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # named below
                **extra,
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise unbuildable(files, error) from error
    except (OSError, ValueError, RuntimeError, SafetensorError, ImportError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise ModelError(
                f"{files.name} does not fit on device {device!r}: {error}; use --dtype bfloat16, "
                "--device balanced or --device cpu"
            ) from error
        if not files.local and "does not appear to have a file named" in str(error):
            raise ModelError(_no_safetensors(f"model {files.path!r}", "")) from error
        raise ModelError(
            f"the weights of {files.path!r} cannot be loaded (safetensors only): {error}"
        ) from error
    causal_lm, loaded = found
    wrong = sorted(loaded["mismatched_keys"])
    if wrong:
        key, found_shape, shape = wrong[0]
        raise ModelError(
            f"{len(wrong)} weights of {files.path!r} have other shapes than its config.json says, "
            f"{key!r} the first: {tuple(found_shape)}, not {tuple(shape)}"
        )
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise ModelError(
            f"the weights of {files.path!r} lack {len(missing)} parameters, {missing[0]!r} the "
            "first; they would be random numbers"
        )
    return causal_lm


def unbuildable(files: ModelFiles, error: BaseException) -> ModelError:
    """The error to raise where transformers cannot build the model that a configuration states."""
    return ModelError(
        f"no model can be built from the config.json of {files.path!r}: "
        f"{type(error).__name__} {error}"
    )


def _check_weight_files(files: ModelFiles) -> None:
    """Raise ModelError for a folder without safetensors, or with a shard missing."""
    folder = Path(files.path)
    if (folder / _SINGLE).is_file() or getattr(files.config, "transformers_weights", None):
        return
    if not (folder / _INDEX).is_file():
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLED)
        holds = f"it holds {pickled[0]}" if pickled else "it holds no weights at all"
        raise ModelError(_no_safetensors(f"folder {files.path!r}", f" ({holds})"))
    try:
        shards = set(json.loads((folder / _INDEX).read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{folder / _INDEX} cannot be read: {error}") from error
    absent = sorted(name for name in shards if not (folder / name).is_file())
    if absent:
        raise ModelError(
            f"folder {files.path!r} lacks {len(absent)} of the {len(shards)} files that its "
            f"{_INDEX} names, {absent[0]!r} the first; copy or download it again"
        )


def _no_safetensors(what: str, holds: str) -> str:
    return (
        f"{what} has no safetensors weights{holds}; pickled ones (.bin, .pt) are never read, since "
        "reading them can run code: look for a revision with safetensors, or convert them where "
        "you trust the source, with model.save_pretrained(folder)"
    )


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


def load_tokenizer(files: ModelFiles) -> Any:
    """The model's tokenizer. Raises ModelError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(files.path, trust_remote_code=False, **files.where)
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"the tokenizer of {files.path!r} needs Python code of its own, which is never "
                "run here; load one yourself and pass tokenizer=… in Python"
            ) from error
        raise ModelError(f"the tokenizer of {files.path!r} cannot be loaded: {error}") from error
