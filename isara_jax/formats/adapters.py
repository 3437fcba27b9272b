"""LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`."""

import math
import pathlib
import re
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from isara_jax import config
from isara_jax.files import remote, storage
from isara_jax.formats import weights
from isara_jax.models import fields as fields_lib
from isara_jax.models import lora
from isara_jax.models.network import DecoderConfig

_PREFIX = "base_model.model."
# Fields that leave the result at base + scale * x A B; others are refused where they are set. The
# tensors say which layers are adapted; the fields, whether one may be without.
_KNOWN = {
    "peft_type", "r", "lora_alpha", "bias", "init_lora_weights", "task_type", "auto_mapping",
    "base_model_name_or_path", "revision", "inference_mode", "peft_version", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "eva_config",
    "megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying", "use_rslora",
}  # fmt: skip
# Others (PiSSA, OLoRA, LoftQ ...) change the base model's weights, too.
_INITIALISATIONS = (True, False, "gaussian", "orthogonal", "eva")


def _tensor_names(network: DecoderConfig, settings: config.Lora) -> dict[str, str]:
    """Our path (`layers_i/attention/q/a`) of each tensor of an adapter, by PEFT's name."""
    names = {}
    for layer in lora.target_shapes(network, settings):
        module = weights.match(network, "/".join((*layer, "kernel")))[1].removesuffix(".weight")
        for matrix in "ab":
            theirs = f"{_PREFIX}{module}.lora_{matrix.upper()}.weight"
            names[theirs] = "/".join((*layer, matrix))
    return names


def save(
    directory: pathlib.Path,
    network: DecoderConfig,
    adapter: lora.Trainable,
    settings: config.Lora,
    base: str,
) -> None:
    """Writes an adapter as PEFT does.

    Args:
      directory: created when missing.
      network: which it adapts.
      adapter: on the host.
      settings: rank, alpha, targets.
      base: path of the base model, for `base_model_name_or_path`.
    """
    flat, names = weights.flatten(adapter), _tensor_names(network, settings)
    tensors = {theirs: np.ascontiguousarray(flat[ours].T) for theirs, ours in names.items()}
    modules = {name.rsplit(".", 3)[1] for name in names}
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted(modules),
    }
    data = safetensors.numpy.save(tensors, weights.METADATA)
    storage.atomic_write(directory / "adapter_model.safetensors", data)
    storage.write_json(directory / "adapter_config.json", content)


def locate(name: str) -> pathlib.Path:
    """The folder of an adapter: a path, or a copy of a URL."""
    return remote.folder(name, ("adapter_config.json", "adapter_model.safetensors"))


def load(directory: pathlib.Path, network: DecoderConfig) -> tuple[lora.Trainable, config.Lora]:
    """Reads an adapter that PEFT, or `save`, has written.

    Args:
      directory: with `adapter_config.json` and `adapter_model.safetensors`.
      network: which it must fit.

    An adapter of some blocks only has zeros in the others, which training leaves at zero, as PEFT
    does. rsLoRA (arXiv 2312.03732) scales by alpha / sqrt(r): here that is a larger alpha.

    Returns:
      The adapter in f32, on the host, and its settings.

    Raises:
      ValueError: it is damaged, of another kind, or of another model; the message says where.
    """
    path = directory / "adapter_config.json"
    fields = storage.read_json(path)
    rank, alpha = _rank_and_alpha(fields, path)
    tensors = _read(directory)
    targets = _targets(set(tensors), network, directory)
    settings = config.Lora(rank=rank, alpha=alpha, targets=targets)
    names = _tensor_names(network, settings)
    chosen = {name for name in names if _is_chosen(_module(name), fields, path)}
    unknown, missing = set(tensors) - chosen, chosen - set(tensors)
    if unknown or missing:
        raise ValueError(
            f"{directory}: not an adapter of every block of this model, or of those that "
            f"{path.name} chooses; unknown: {weights.some(unknown)}; "
            f"missing: {weights.some(missing)}"
        )
    shapes = lora.target_shapes(network, settings)
    flat = {}
    for theirs, ours in names.items():
        *layer, matrix = ours.split("/")
        inputs, outputs = shapes[tuple(layer)]
        want = (rank, inputs) if matrix == "a" else (outputs, rank)
        value = tensors[theirs] if theirs in chosen else np.zeros(want, np.float32)
        if value.shape != want:
            raise ValueError(
                f"{directory}: {theirs} has shape {value.shape}; r={rank} and the model imply "
                f"{want}"
            )
        if not np.isfinite(value).all():
            raise ValueError(f"{directory}: {theirs} holds infinities or NaNs")
        flat[ours] = np.ascontiguousarray(value.T)
    return weights.unflatten(flat), settings


def _rank_and_alpha(fields: dict[str, Any], path: pathlib.Path) -> tuple[int, float]:
    if fields.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type is {fields.get('peft_type')!r}; 'LORA' is expected")
    for name, value in fields.items():
        if value and name not in _KNOWN:
            raise ValueError(f"{path}: {name} is {value!r}; plain LoRA is expected")
    if fields.get("bias", "none") != "none":
        raise ValueError(f"{path}: bias is {fields['bias']!r}; 'none' is expected")
    if fields.get("init_lora_weights", True) not in _INITIALISATIONS:
        raise ValueError(
            f"{path}: init_lora_weights is {fields['init_lora_weights']!r}, which changes the base "
            "model, too; convert the adapter to plain LoRA with PEFT"
        )
    rank, alpha = fields.get("r"), fields.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(f"{path}: r is {rank!r}; a whole number above 0 is expected")
    if not fields_lib.is_positive(alpha):
        raise ValueError(f"{path}: lora_alpha is {alpha!r}; a number above 0 is expected")
    return rank, float(alpha) * (math.sqrt(rank) if fields.get("use_rslora") else 1)


def _module(name: str) -> str:
    """The module that a tensor adapts, as PEFT's fields speak of it."""
    return name.removeprefix(_PREFIX).rsplit(".", 2)[0]


def _is_chosen(module: str, fields: dict[str, Any], path: pathlib.Path) -> bool:
    """Whether the fields choose a module, by PEFT's rules (`check_target_module_exists`)."""
    try:
        if _is_among(module, fields.get("exclude_modules")):
            return False
        targets = fields.get("target_modules")
        if isinstance(targets, str):
            return targets == "all-linear" or _is_among(module, targets)
        if not (targets is None or _is_among(module, targets)):
            return False
        blocks = fields.get("layers_to_transform")
        if blocks is None or blocks == []:
            return True
        blocks, lists = (
            [blocks] if isinstance(blocks, int) else blocks,
            fields.get("layers_pattern"),
        )
        for name in [lists] if isinstance(lists, str) else lists or [r"[^.]*"]:
            if number := re.match(rf".*\.{name}\.(\d+)\.", module):
                return int(number[1]) in blocks
        return False
    except (re.error, TypeError) as error:
        raise ValueError(
            f"{path}: target_modules, exclude_modules, layers_to_transform and layers_pattern do "
            f"not choose layers ({error})"
        ) from error


def _is_among(module: str, names: Any) -> bool:
    """Whether a pattern is that of a module, or names in a list end it."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(f".{module}".endswith(f".{name}") for name in names or ())


def _read(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors in f32."""
    path = directory / "adapter_model.safetensors"
    if not path.exists():
        raise ValueError(f"{path}: not found; PEFT saves it with safe_serialization=True")
    try:
        tensors = safetensors.numpy.load_file(storage.followed(directory, path))
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as safetensors ({error})") from error
    for name, value in tensors.items():
        if value.dtype.name not in ("float32", "float16", "bfloat16"):
            raise ValueError(f"{path}: {name} is {value.dtype}; f32, f16 or bf16 is expected")
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def _targets(names: set[str], network: DecoderConfig, directory: pathlib.Path) -> tuple[str, ...]:
    """Which of our layers an adapter has, by its tensors: `target_modules` may be a pattern."""
    every = config.Lora()
    found = {
        ours.split("/")[-2] for theirs, ours in _tensor_names(network, every).items()
        if theirs in names
    }  # fmt: skip
    if not found:
        raise ValueError(
            f"{directory}: no tensor fits a layer of the model; found {weights.some(names)}"
        )
    return tuple(t for t in every.targets if t in found)
