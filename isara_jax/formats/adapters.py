"""LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`."""

import json
import math
import pathlib
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import safetensors.numpy

from isara_jax import config
from isara_jax.files import confined, remote, storage
from isara_jax.formats import chosen, weights
from isara_jax.models import families, lora
from isara_jax.models import fields as fields_lib
from isara_jax.models.network import FUSED, DecoderConfig
from isara_jax.shell.terminal import quoted

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
_MOST_RANK = 1 << 16  # the widest layer's inputs: a higher one can express nothing more
# What patterns of modules may take: published ones take milliseconds.
_PATTERN_SECONDS, _PATTERN_BYTES = 5, 1 << 30


def _tensor_names(network: DecoderConfig, settings: config.Lora) -> dict[str, str]:
    """Our path (`layers_i/attention/q/a`) of each tensor of an adapter, by PEFT's name."""
    names = {}
    for layer in lora.target_shapes(network, settings):
        module = weights.find(network, "/".join((*layer, "kernel"))).name.removesuffix(".weight")
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
    if others := families.family_of(network).passed_over:  # with layers of the same names
        parts = sorted({prefix.removesuffix(".").split(".")[-1] for prefix in others})
        content["exclude_modules"] = f".*({'|'.join(parts)}).*"
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
    fields = storage.read_json(storage.followed(directory, path))
    rank, alpha = _rank_and_alpha(fields, path)

    def found_settings(found: Collection[str]) -> config.Lora:
        return config.Lora(rank=rank, alpha=alpha, targets=_targets(found, network, directory))

    def expected(found: set[str]) -> dict[str, tuple[int, ...]]:
        names = _tensor_names(network, found_settings(found))
        chosen_ones = _chosen(names, fields, path)
        unknown, missing = found - chosen_ones, chosen_ones - found
        if unknown or missing:
            raise ValueError(
                f"{directory}: not an adapter of every block of this model, or of those that "
                f"{path.name} chooses; unknown: {weights.some(unknown)}; "
                f"missing: {weights.some(missing)}"
            )
        shapes = _shapes(network, found_settings(found))
        return {name: shapes[name] for name in names if name in chosen_ones}

    tensors = _read(directory, rank, expected)
    settings = found_settings(tensors)
    shapes = _shapes(network, settings)
    flat = {}
    for theirs, ours in _tensor_names(network, settings).items():
        value = tensors.get(theirs)
        value = np.zeros(shapes[theirs], np.float32) if value is None else value
        flat[ours] = np.ascontiguousarray(value.T)
    return weights.unflatten(flat), settings


def _shapes(network: DecoderConfig, settings: config.Lora) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of an adapter, by PEFT's name."""
    sizes, result = lora.target_shapes(network, settings), {}
    for theirs, ours in _tensor_names(network, settings).items():
        *layer, matrix = ours.split("/")
        inputs, outputs = sizes[tuple(layer)]
        result[theirs] = (settings.rank, inputs) if matrix == "a" else (outputs, settings.rank)
    return result


def _rank_and_alpha(fields: dict[str, Any], path: pathlib.Path) -> tuple[int, float]:
    if fields.get("peft_type") != "LORA":
        raise ValueError(
            f"{path}: peft_type is {quoted(fields.get('peft_type'))}; 'LORA' is expected"
        )
    for name, value in fields.items():
        if value and name not in _KNOWN:
            raise ValueError(f"{path}: {name} is {quoted(value)}; plain LoRA is expected")
    if fields.get("bias", "none") != "none":
        raise ValueError(f"{path}: bias is {quoted(fields['bias'])}; 'none' is expected")
    if fields.get("init_lora_weights", True) not in _INITIALISATIONS:
        raise ValueError(
            f"{path}: init_lora_weights is {quoted(fields['init_lora_weights'])}, which "
            "changes the base model, too; convert the adapter to plain LoRA with PEFT"
        )
    rank, alpha = fields.get("r"), fields.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= _MOST_RANK:
        raise ValueError(
            f"{path}: r is {quoted(rank)}; a whole number above 0 (and at most "
            f"{_MOST_RANK:,}) is expected"
        )
    if not fields_lib.is_positive(alpha):
        raise ValueError(f"{path}: lora_alpha is {quoted(alpha)}; a number above 0 is expected")
    return rank, float(alpha) * (math.sqrt(rank) if fields.get("use_rslora") else 1)


def _module(name: str) -> str:
    """The module that a tensor adapts, as PEFT's fields speak of it."""
    return name.removeprefix(_PREFIX).rsplit(".", 2)[0]


def _chosen(names: Collection[str], fields: dict[str, Any], path: pathlib.Path) -> set[str]:
    """Those of some tensors whose modules the fields choose."""
    modules = {name: _module(name) for name in names}
    try:
        if not chosen.has_patterns(fields):
            return {name for name, module in modules.items() if chosen.is_chosen(module, fields)}
        said = confined.run(
            pathlib.Path(chosen.__file__),
            given=json.dumps({"fields": fields, "modules": [*modules.values()]}).encode(),
            seconds=_PATTERN_SECONDS, n_bytes=_PATTERN_BYTES,
        )  # fmt: skip
    except (confined.RefusedError, TypeError) as error:
        raise ValueError(
            f"{path}: target_modules, exclude_modules, layers_to_transform and layers_pattern do "
            f"not choose layers ({error}); give target_modules as a list of names"
        ) from error
    return {name for name, one in zip(modules, json.loads(said), strict=True) if one}


def _read(
    directory: pathlib.Path,
    rank: int,
    shapes: Callable[[set[str]], dict[str, tuple[int, ...]]],
) -> dict[str, np.ndarray]:
    """All tensors in f32.

    Args:
      directory: the adapter's.
      rank: as its fields have it, for messages.
      shapes: of the tensors that there must be, given the names of those that there are; nothing
        is read before they are compared.
    """
    path = directory / "adapter_model.safetensors"
    if not path.exists():
        raise ValueError(f"{path}: not found; PEFT saves it with safe_serialization=True")
    with weights.opened(storage.followed(directory, path)) as file:
        expected, tensors = shapes(set(file.keys())), {}
        for name, want in expected.items():
            found = file.get_slice(name)
            if found.get_dtype() not in ("F32", "F16", "BF16"):
                raise ValueError(
                    f"{path}: {name} is {found.get_dtype()}; f32, f16 or bf16 is expected"
                )
            if tuple(found.get_shape()) != want:
                raise ValueError(
                    f"{directory}: {name} has shape {tuple(found.get_shape())}; r={rank} and "
                    f"the model imply {want}"
                )
        for name in expected:
            tensors[name] = file.get_tensor(name).astype(np.float32)
            if not np.isfinite(tensors[name]).all():
                raise ValueError(f"{directory}: {name} holds infinities or NaNs")
    return tensors


def _targets(
    names: Collection[str], network: DecoderConfig, directory: pathlib.Path
) -> tuple[str, ...]:
    """Which of our layers an adapter has, by its tensors: `target_modules` may be a pattern."""
    every = config.Lora()
    layers = [
        ours.rsplit("/", 1)[0] for theirs, ours in _tensor_names(network, every).items()
        if theirs in names
    ]  # fmt: skip
    in_block = {layer.split("/", 1)[1] for layer in layers}
    found = {part for path in in_block for part in FUSED.get(path, (path.split("/")[-1],))}
    if not found:
        raise ValueError(
            f"{directory}: no tensor fits a layer of the model; found {weights.some(names)}"
        )
    return tuple(t for t in every.targets if t in found)
