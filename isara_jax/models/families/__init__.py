"""The model families, by the `model_type` of an HF config.

Another one is a file beside these and an entry of `FAMILIES`: how its fields map to
`network.DecoderConfig`, and how its tensors are called.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from isara_jax.models.decoder import Decoder
from isara_jax.models.families import (
    family,
    gemma,
    granite,
    llama,
    mistral,
    olmo,
    opt,
    phi3,
    qwen,
    smollm3,
)
from isara_jax.models.families.family import Family
from isara_jax.models.fields import Fields
from isara_jax.models.network import DecoderConfig
from isara_jax.shell.terminal import quoted

FAMILIES: dict[str, Family] = {
    "llama": llama.FAMILY,
    "opt": opt.FAMILY,
    "mistral": mistral.FAMILY,
    "qwen2": qwen.QWEN2,
    "qwen3": qwen.QWEN3,
    "gemma": gemma.GEMMA,
    "gemma2": gemma.GEMMA2,
    "gemma3_text": gemma.GEMMA3,
    "gemma3": gemma.GEMMA3_WHOLE,
    "olmo2": olmo.OLMO2,
    "olmo3": olmo.OLMO3,
    "smollm3": smollm3.FAMILY,
    "granite": granite.FAMILY,
    "phi3": phi3.FAMILY,
}
# What is missing of the best known others, by parts of their names.
_MISSING = {
    "moe": "mixtures of experts are not supported",
    "mixtral": "mixtures of experts are not supported",
    "gpt_oss": "mixtures of experts are not supported",
    "deepseek": "mixtures of experts and latent attention are not supported",
    "gemma4": "layers that share keys and values, and embeddings by layer, are not supported",
    "gemma3n": "layers that share keys and values, and embeddings by layer, are not supported",
    "qwen3_5": "linear attention is not supported",
    "qwen3_next": "linear attention and mixtures of experts are not supported",
    "_vl": "models of pictures and text are not supported",
    "llava": "models of pictures and text are not supported",
    "mllama": "models of pictures and text are not supported",
    "paligemma": "models of pictures and text are not supported",
}


def from_hf(values: dict[str, Any], source: str) -> DecoderConfig:
    """The network of an HF `config.json`.

    Args:
      values: its content.
      source: the file's name, for messages.

    Raises:
      ValueError: a family or a field this package does not compute, or a field is missing; the
        message names it.
    """
    name = values.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        why = [why for part, why in _MISSING.items() if isinstance(name, str) and part in name]
        raise ValueError(
            f"{source}: model_type is {quoted(name)}; {''.join(f'{w}; ' for w in why[:1])}"
            f"supported: {', '.join(FAMILIES)}"
        )
    fields = Fields(values, source, FAMILIES[name].called)
    network = dataclasses.replace(FAMILIES[name].read(fields), **fields.labels())
    fields.finish()
    return network


def to_hf(network: DecoderConfig) -> dict[str, Any]:
    """The HF `config.json` of a language model by itself, which `from_hf` reads back."""
    if other := family_of(network).alone:
        network = dataclasses.replace(network, family=other[0])
    return family.to_hf(family_of(network), network, network.family)


def alone(network: DecoderConfig, values: dict[str, Any]) -> tuple[DecoderConfig, dict[str, Any]]:
    """A language model by itself, where it was part of a larger model, and its HF config."""
    found = family_of(network)
    if found.alone is None:
        return network, values | {"architectures": [found.architecture]}
    name, of = found.alone
    changed = {"model_type": name, "architectures": [FAMILIES[name].architecture]}
    return dataclasses.replace(network, family=name), of(values) | changed


def family_of(network: DecoderConfig) -> Family:
    """The family a network belongs to."""
    return FAMILIES[network.family]


def build(network: DecoderConfig, dtype: Any = jnp.float32, **changed: Any) -> Decoder:
    """The Flax module of a network; `dtype` is of weights and activations."""
    return Decoder(network, dtype, **changed)
