"""The model families, by the `model_type` of an HF config."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from isara_jax.models import llama, opt
from isara_jax.models.decoder import Decoder
from isara_jax.models.network import DecoderConfig
from isara_jax.models.weight_table import Row
from isara_jax.shell.terminal import quoted


class Family(NamedTuple):
    """Everything that tells one family from another.

    Attributes:
      config: the class of its networks' configs.
      module: its decoder stack.
      table: HF names, our paths, layout and placement of its tensors.
      from_hf, to_hf: between an HF `config.json` and ours.
    """

    config: type[DecoderConfig]
    module: type[Decoder]
    table: tuple[Row, ...]
    from_hf: Callable[[dict[str, Any], str], DecoderConfig]
    to_hf: Callable[[Any], dict[str, Any]]


FAMILIES = {
    "llama": Family(llama.LlamaConfig, llama.Llama, llama.TABLE, llama.from_hf, llama.to_hf),
    "opt": Family(opt.OptConfig, opt.Opt, opt.TABLE, opt.from_hf, opt.to_hf),
}


def from_hf(fields: dict[str, Any], source: str) -> DecoderConfig:
    """The network of an HF `config.json`.

    Raises:
      ValueError: a family or a field this package does not compute; the message names it.
    """
    name = fields.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(
            f"{source}: model_type is {quoted(name)}; supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[name].from_hf(fields, source)


def family_of(config: DecoderConfig) -> Family:
    """The family a network belongs to."""
    return next(f for f in FAMILIES.values() if isinstance(config, f.config))


def build(config: DecoderConfig, dtype: Any = jnp.float32, **changed: Any) -> Decoder:
    """The Flax module of a network; `dtype` is of weights and activations."""
    return family_of(config).module(config, dtype, **changed)
