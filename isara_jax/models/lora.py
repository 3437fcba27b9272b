"""Adapter trees (LoRA, arXiv 2106.09685) and what is trained in their place."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from isara_jax import config
from isara_jax.models.network import FUSED, DecoderConfig

Trainable = dict[str, Any]
"""What is updated: an adapter, or (full fine-tuning) a whole parameter tree. Always f32."""


def target_shapes(
    network: DecoderConfig, lora: config.Lora
) -> dict[tuple[str, str, str], tuple[int, int]]:
    """(inputs, outputs) of each adapted layer, by its path (`layers_i`, `attention`, `q`).

    Where a checkpoint has layers fused, they are adapted as one (`attention`, `qkv`), as PEFT does.

    Raises:
      ConfigError: the targets are some but not all of the layers that are fused.
    """
    wanted = {path for path in network.adapted if _is_target(path, network, lora.targets)}
    return {
        (f"layers_{index}", *path.split("/")): shape
        for index in range(network.n_layers)
        for path, shape in network.adapted.items()
        if path in wanted
    }


def _is_target(path: str, network: DecoderConfig, targets: tuple[str, ...]) -> bool:
    parts = FUSED.get(path, ()) if network.fused else ()
    found = [part in targets for part in parts or (path.split("/")[-1],)]
    if any(found) and not all(found):
        raise config.ConfigError(
            f"config.train.lora.targets: {network.family} has {', '.join(parts)} fused in one "
            "layer: all or none of them are expected"
        )
    return all(found)


def by_layer(base: dict[str, Any], adapter: Trainable) -> Trainable:
    """An adapter with those of fused layers as theirs: one a, and each layer's outputs of b."""
    result: Trainable = {}
    parts_of = {whole.split("/")[1]: parts for whole, parts in FUSED.items()}
    for name, node in adapter.items():
        if name not in parts_of:
            result[name] = node if "a" in node else by_layer(base[name], node)
            continue
        start = 0
        for part in parts_of[name]:
            stop = start + base[part]["kernel"].shape[-1]
            result[part] = {"a": node["a"], "b": node["b"][:, start:stop]}
            start = stop
    return result


def init(network: DecoderConfig, lora: config.Lora, key: jax.Array) -> Trainable:
    """A fresh adapter: a as PEFT draws it (Kaiming uniform, a = sqrt 5), b zero.

    Returns:
      `{layers_i: {attention: {q: {"a": [in, R], "b": [R, out]}}}}`, f32.
    """
    tree: Trainable = {}
    for index, (path, (inputs, outputs)) in enumerate(target_shapes(network, lora).items()):
        bound = 1 / math.sqrt(inputs)
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node["a"] = jax.random.uniform(
            jax.random.fold_in(key, index), (inputs, lora.rank), minval=-bound, maxval=bound
        )
        node["b"] = jnp.zeros((lora.rank, outputs))
    return tree


def variables(
    base: dict[str, Any], trainable: Trainable | None, train: config.Train, *, merged: bool = False
) -> dict:
    """What `Module.apply` takes: the base model, as changed by `trainable` (None: unchanged).

    LoRA's scale alpha / rank is folded into b here, so that no layer needs to know it.

    Args:
      base: the parameters.
      trainable: an adapter or, in full fine-tuning, all weights.
      train: rank and alpha.
      merged: the kernels take the adapter's product in, once, so that no step computes it. For f32:
        in bf16 the sum would round most of a small change away.
    """
    if trainable is None:
        return {"params": base}
    if train.trainable == "full":
        return {"params": jax.tree.map(lambda t, b: t.astype(b.dtype), trainable, base)}
    scale = train.lora.alpha / train.lora.rank
    scaled = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * scale if path[-1].key == "b" else leaf, by_layer(base, trainable)
    )
    if merged:
        return {"params": _added(base, scaled)}
    return {"params": base, "lora": scaled}


def _added(base: dict[str, Any], scaled: Trainable) -> dict[str, Any]:
    """The parameters with kernel + a b in place of the adapted kernels."""
    if "a" in scaled:
        return base | {"kernel": base["kernel"] + scaled["a"] @ scaled["b"]}
    return base | {name: _added(base[name], part) for name, part in scaled.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Merged:
    """A kernel plus its adapter's product; an array of it is computed each time one is asked for.

    So a merged model takes no more memory than its parts: `weights.save` asks for one at a time.
    """

    kernel: Any
    a: Any
    b: Any
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.kernel.shape

    @property
    def size(self) -> int:
        return self.kernel.size

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.kernel.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        a, b, kernel = (np.asarray(x, np.float32) for x in (self.a, self.b, self.kernel))
        merged = (kernel + self.scale * (a @ b)).astype(self.dtype)
        return merged if dtype is None else merged.astype(dtype)


def merge(base: dict[str, Any], adapter: Trainable, settings: config.Lora) -> dict[str, Any]:
    """The base model with the adapter in its weights: kernel + alpha / rank * a b.

    Each sum is taken in f32 and rounded once, to the type of the kernel.

    Args:
      base: the parameters, on the host or on a CPU.
      adapter: as `init` makes it.
      settings: its rank and alpha.

    Returns:
      A tree like `base`, with `Merged` in place of the adapted kernels.
    """
    return _merged(base, by_layer(base, adapter), settings.alpha / settings.rank)


def _merged(base: dict[str, Any], adapter: Trainable, scale: float) -> dict[str, Any]:
    if "a" in adapter:
        return base | {"kernel": Merged(base["kernel"], adapter["a"], adapter["b"], scale)}
    return base | {name: _merged(base[name], part, scale) for name, part in adapter.items()}
