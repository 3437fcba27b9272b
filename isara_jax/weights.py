"""Hugging Face directories in and out: one table a family, slice by slice onto the mesh.

Only safetensors is read. The tables are strict both ways: a tensor that matches no row, or a
parameter that no tensor fills, is an error that names it.
"""

import json
import os
import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
import transformers
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from isara_jax import config, lora
from isara_jax.models import llama

METADATA = {"format": "pt"}


class Row(NamedTuple):
    """One kind of tensor: its Hugging Face name, our path, whether HF stores it transposed.

    `{i}` stands for the layer's index. `spec` shards our layout over the mesh.
    """

    theirs: str
    ours: str
    transposed: bool
    spec: P


def _linear(theirs: str, ours: str, spec: P) -> tuple[Row, Row]:
    """A linear layer: HF keeps `[out, in]`, we keep `[in, out]`; the bias follows the outputs."""
    return (
        Row(f"{theirs}.weight", f"{ours}/kernel", True, spec),
        Row(f"{theirs}.bias", f"{ours}/bias", False, P(spec[1])),
    )


_IN, _OUT = P("fsdp", "model"), P("model", "fsdp")
_LAYER = "model.layers.{i}"
LLAMA = (
    Row("model.embed_tokens.weight", "embed/embedding", False, P("model", "fsdp")),
    Row("model.norm.weight", "norm/scale", False, P()),
    Row("lm_head.weight", "head/kernel", True, _IN),
    Row(f"{_LAYER}.input_layernorm.weight", "layers_{i}/attention_norm/scale", False, P()),
    Row(f"{_LAYER}.post_attention_layernorm.weight", "layers_{i}/mlp_norm/scale", False, P()),
    *_linear(f"{_LAYER}.self_attn.q_proj", "layers_{i}/attention/q", _IN),
    *_linear(f"{_LAYER}.self_attn.k_proj", "layers_{i}/attention/k", _IN),
    *_linear(f"{_LAYER}.self_attn.v_proj", "layers_{i}/attention/v", _IN),
    *_linear(f"{_LAYER}.self_attn.o_proj", "layers_{i}/attention/o", _OUT),
    *_linear(f"{_LAYER}.mlp.gate_proj", "layers_{i}/mlp/gate", _IN),
    *_linear(f"{_LAYER}.mlp.up_proj", "layers_{i}/mlp/up", _IN),
    *_linear(f"{_LAYER}.mlp.down_proj", "layers_{i}/mlp/down", _OUT),
)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as `{"a/b/c": leaf}`."""
    flat = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat |= flatten(value, f"{path}/") if isinstance(value, dict) else {path: value}
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _match(path: str) -> tuple[Row, str]:
    """The table's row for one of our paths, and the tensor's Hugging Face name."""
    index = re.search(r"layers_(\d+)/", path)
    number = index.group(1) if index else ""
    for row in LLAMA:
        if row.ours.replace("{i}", number) == path:
            return row, row.theirs.replace("{i}", number)
    raise KeyError(f"no row of the weight table describes the parameter {path!r}")


def atomic_write(path: pathlib.Path, data: bytes) -> None:
    """Writes a file so that readers see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def abstract_params(model: llama.Llama) -> dict[str, Any]:
    """Shapes and dtypes of the network's parameters, as a tree; nothing is allocated."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return jax.eval_shape(
        lambda t: model.init(jax.random.key(0), t, method="everything")["params"], tokens
    )


def sharding(path: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Where the table puts a parameter.

    Raises:
      ValueError: an axis does not divide among the devices the table gives it.
    """
    row, name = _match(path)
    for size, axis in zip(shape, row.spec, strict=False):
        if axis and size % mesh.shape[axis]:
            raise ValueError(
                f"{name} has an axis of {size}, which config.mesh.{axis}={mesh.shape[axis]} does "
                f"not divide; choose a divisor"
            )
    return NamedSharding(mesh, row.spec)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a file; errors name the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: not found; a Hugging Face model directory has it") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a JSON object is expected, found {type(content).__name__}")
    return content


def load_config(directory: pathlib.Path) -> llama.LlamaConfig:
    """The network of a Hugging Face directory.

    Raises:
      ValueError: no directory, or a model this version does not run; the message says which.
    """
    if not directory.is_dir():
        raise ValueError(f"config.model.path={str(directory)!r} is not a directory")
    path = directory / "config.json"
    fields = read_json(path)
    if fields.get("model_type") != "llama":
        raise ValueError(f"{path}: model_type is {fields.get('model_type')!r}; supported: 'llama'")
    return llama.from_hf(fields, str(path))


def _shards(directory: pathlib.Path) -> dict[str, pathlib.Path]:
    """The safetensors file of each tensor."""
    index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{index}: no weight_map, which says where each tensor is")
        files = {name: directory / file for name, file in weight_map.items()}
    elif single.exists():
        with _open(single) as file:
            files = dict.fromkeys(file.keys(), single)
    else:
        found = sorted(p.name for p in directory.glob("*.bin"))
        hint = f" (found {', '.join(found)}: pickles are not loaded; convert them)" if found else ""
        raise ValueError(f"{directory}: neither model.safetensors nor its index is there{hint}")
    missing = sorted({f.name for f in files.values() if not f.exists()})
    if missing:
        raise ValueError(f"{directory}: the index names {', '.join(missing)}, which is missing")
    return files


def _open(path: pathlib.Path) -> Any:
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as safetensors ({error})") from error


def load(directory: pathlib.Path, model: llama.Llama, mesh: Mesh) -> dict[str, Any]:
    """Reads the weights onto the mesh; each device reads only its slice.

    Args:
      directory: a Hugging Face directory with safetensors.
      model: the network, whose dtype the weights take.
      mesh: the devices.

    Returns:
      The parameters, placed as the table says.

    Raises:
      ValueError: a tensor is missing, unknown, or of another shape; the message names it.
    """
    files = _shards(directory)
    wanted = flatten(abstract_params(model))
    names = {_match(path)[1]: path for path in wanted}
    # Old checkpoints carry RoPE's frequencies, which follow from the config, and tied ones a copy
    # of the embedding as the head.
    ignored = {n for n in files if n.endswith("rotary_emb.inv_freq")}
    if model.config.tied:
        ignored.add("lm_head.weight")
    unknown, unfilled = sorted(set(files) - set(names) - ignored), sorted(set(names) - set(files))
    if unknown or unfilled:
        raise ValueError(
            f"{directory}: the tensors are not those of its config.json; "
            f"unknown: {unknown[:5] or 'none'}; missing: {unfilled[:5] or 'none'}"
        )
    params = {}
    for path in sorted({files[n] for n in names}):
        with _open(path) as file:
            for name in sorted(n for n in names if files[n] == path):
                ours = names[name]
                params[ours] = _place(file, name, ours, wanted[ours], mesh, path)
    return unflatten(params)


def _place(
    file: Any, name: str, ours: str, want: jax.ShapeDtypeStruct, mesh: Mesh, path: pathlib.Path
) -> jax.Array:
    """One tensor from its file onto the mesh, slice by slice."""
    row, _ = _match(ours)
    try:
        stored = file.get_slice(name)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: {name} is not in this file ({error})") from error
    shape = tuple(stored.get_shape())
    expected = want.shape[::-1] if row.transposed else want.shape
    if shape != expected:
        raise ValueError(f"{path}: {name} has shape {shape}, config.json implies {expected}")
    if stored.get_dtype() not in ("F32", "F16", "BF16"):
        raise ValueError(f"{path}: {name} is {stored.get_dtype()}; F32, F16 or BF16 is expected")

    def part(index: tuple[slice, ...]) -> np.ndarray:
        values = stored[index[::-1]].T if row.transposed else stored[index]
        return np.asarray(values, want.dtype)

    return jax.make_array_from_callback(want.shape, sharding(ours, want.shape, mesh), part)


def load_tokenizer(directory: pathlib.Path) -> transformers.PreTrainedTokenizerBase:
    """The directory's tokenizer; never runs code from it.

    Raises:
      ValueError: there is none, or it cannot be read.
    """
    try:
        return transformers.AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(f"{directory}: no usable tokenizer ({error})") from error


def save_llama(
    directory: pathlib.Path, network: llama.LlamaConfig, params: dict, tokenizer: Any
) -> None:
    """Writes a Hugging Face directory that `transformers` and `load` read.

    Args:
      directory: created when missing.
      network: its shapes.
      params: our tree, on the host.
      tokenizer: a `tokenizers.Tokenizer` with `<s>` and `</s>`.
    """
    save_params(directory, params)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(directory / "config.json", llama.to_hf(network))
    write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast"} | special,
    )
    atomic_write(directory / "tokenizer.json", tokenizer.to_str(pretty=False).encode())


def save_params(directory: pathlib.Path, params: dict) -> None:
    """Writes `model.safetensors` under Hugging Face's names from our tree, on the host."""
    tensors = {}
    for path, value in flatten(params).items():
        row, name = _match(path)
        tensors[name] = np.ascontiguousarray(value.T if row.transposed else value)
    atomic_write(directory / "model.safetensors", safetensors.numpy.save(tensors, METADATA))


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes readable JSON atomically."""
    atomic_write(path, (json.dumps(content, indent=2) + "\n").encode())


def save_adapter(
    directory: pathlib.Path, adapter: lora.Trainable, settings: config.Lora, base: str
) -> None:
    """Writes an adapter as PEFT does: `adapter_config.json` and `adapter_model.safetensors`.

    Args:
      directory: created when missing.
      adapter: on the host.
      settings: rank, alpha, targets.
      base: path of the base model, for `base_model_name_or_path`.
    """
    tensors, modules = {}, set()
    for path, value in flatten(adapter).items():
        layer, matrix = path.rsplit("/", 1)
        module = _match(f"{layer}/kernel")[1].removesuffix(".weight")
        modules.add(module.rsplit(".", 1)[-1])
        name = f"base_model.model.{module}.lora_{matrix.upper()}.weight"
        tensors[name] = np.ascontiguousarray(value.T)
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
    data = safetensors.numpy.save(tensors, METADATA)
    atomic_write(directory / "adapter_model.safetensors", data)
    write_json(directory / "adapter_config.json", content)
