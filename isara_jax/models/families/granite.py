"""Granite (HF `GraniteForCausalLM`): LLaMA with four multipliers."""

import dataclasses
from typing import Any

from isara_jax.models.families import family, llama
from isara_jax.models.fields import Fields
from isara_jax.models.network import DecoderConfig

_MULTIPLIERS = {
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention_scale",
    "logits_scaling": "logit_divisor",
}


def _read(fields: Fields) -> DecoderConfig:
    found = {ours: fields.number(theirs, 1.0) for theirs, ours in _MULTIPLIERS.items()}
    return dataclasses.replace(llama.read(fields), family="granite", **found)


def _write(network: DecoderConfig) -> dict[str, Any]:
    multipliers = {theirs: getattr(network, ours) for theirs, ours in _MULTIPLIERS.items()}
    return llama.write(network) | multipliers


FAMILY = family.Family("Granite", "GraniteForCausalLM", _read, _write, family.table())
