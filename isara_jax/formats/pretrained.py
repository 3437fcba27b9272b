"""A pretrained model on disk: what is known of it, its weights, and what is written like it."""

import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from jax.sharding import Mesh

from isara_jax.devices import mesh as mesh_lib
from isara_jax.files import remote, storage
from isara_jax.formats import weights
from isara_jax.models import attention, decoder, families
from isara_jax.models.network import DecoderConfig
from isara_jax.text import chat, reading, special_tokens, tokens

_TESTBED = pathlib.Path(__file__).parents[1] / "testbed"
BUNDLED = {name: _TESTBED / name for name in ("tiny_llama", "tiny_opt")}
# What is read of a model at a URL; pickles are not.
_NEEDED = ("config.json", "*.safetensors")
_OTHERS = (
    "model.safetensors.index.json", "generation_config.json", *reading.FILES, "README.md",
    "LICEN[SC]E*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Pretrained(NamedTuple):
    """What is known of a model before its weights are read.

    Attributes:
      path: its Hugging Face directory.
      network: its shapes.
      vocabulary: its tokenizer.
    """

    path: pathlib.Path
    network: DecoderConfig
    vocabulary: tokens.Vocabulary

    def build(self, dtype: str, mesh: Mesh, kv_cache: str = "auto") -> decoder.Decoder:
        """The module, as it runs fastest on these devices.

        Args:
          dtype: as for `choose_dtype`.
          mesh: the devices.
          kv_cache: `config.Config.kv_cache`.
        """
        kind = choose_dtype(dtype, mesh.devices.flat[0])
        how = attention.settings(mesh, kind, self.network.head_size, kv_cache)
        several = mesh if mesh.size > 1 else None
        return families.build(self.network, kind, how=how, mesh=several)

    def load(self, dtype: str, mesh: Mesh) -> tuple[decoder.Decoder, dict[str, Any]]:
        """The module and its weights on the mesh; `dtype` as for `choose_dtype`.

        Raises:
          ValueError: the weights are damaged or of another model.
        """
        model = self.build(dtype, mesh)
        return model, weights.load(self.path, model, mesh)


def choose_dtype(name: str, device: jax.Device) -> Any:
    """`float32`, `bfloat16`, or `auto`: bf16 where the devices compute in it, else f32."""
    narrow = name == "bfloat16" or (name == "auto" and mesh_lib.native_bf16(device))
    return jnp.bfloat16 if narrow else jnp.float32


def locate(name: str) -> pathlib.Path:
    """The directory of a model: a bundled one by its name, else a path, or a copy of a URL."""
    return BUNDLED.get(name) or remote.folder(name, _NEEDED, _OTHERS)


def name_of(path: pathlib.Path) -> str:
    """What a base model is called: its name on the hub if it lies in the hub's cache, or its path.

    Either is something that `from_pretrained` understands. A copy is called by its URL.
    """
    if url := remote.source(path):
        return url
    path = path.resolve()  # .../models--ORGANISATION--NAME/snapshots/REVISION
    repository = path.parent.parent.name
    if path.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return str(path)


def read(
    name: str, begin: special_tokens.Begin = "auto", template: chat.Kind = "plain"
) -> Pretrained:
    """Reads and checks everything but the weights.

    Args:
      name: a Hugging Face directory, here or at a URL, or the name of a bundled model.
      begin: whether texts begin with BOS, as `config.Model.bos` has it.
      template: of questions and answers, as `config.Model.template` has it.

    Raises:
      ValueError: something is missing, damaged, not supported, or of another model.
    """
    path = locate(name)
    for file in ("config.json", "generation_config.json"):
        storage.followed(path, path / file)
    network = weights.load_config(path)
    ends = special_tokens.named_ends(path, network.vocab_size)
    tokenizer = reading.load(path)
    special = special_tokens.read(path, tokenizer, ends, begin)
    of_model = (tokenizer, network.vocab_size, str(path))
    if template == "plain":
        return Pretrained(path, network, tokens.Vocabulary(*of_model, special))
    vocabulary = tokens.Vocabulary(*of_model, *chat.read(tokenizer, special, str(path), template))
    chat.check(vocabulary)
    return Pretrained(path, network, vocabulary)


def read_language_model(
    name: str, begin: special_tokens.Begin = "auto", template: chat.Kind = "plain"
) -> Pretrained:
    """As `read`; a judge's head instead of a language model's is an error."""
    found = read(name, begin, template)
    if found.network.n_labels:
        raise ValueError(
            f"{found.path}: a model that judges ({found.network.n_labels} outputs), not one that "
            "writes; give a causal language model"
        )
    return found


# --- out -----------------------------------------------------------------------------------------


def stored_dtype(directory: pathlib.Path) -> str:
    """The type of a checkpoint's weights; `float32`, which holds them all, if there are several.

    Raises:
      ValueError: its files cannot be read.
    """
    found = {_DTYPES.get(kind) for kind in weights.stored_types(directory)}
    return found.pop() if len(found) == 1 and None not in found else "float32"


def save_model(folder: pathlib.Path, base: Pretrained, params: dict[str, Any]) -> None:
    """Writes a model that differs from its base in the weights alone.

    Args:
      folder: where; it exists.
      base: gives config, tokenizer, defaults of generation, and the type of the weights.
      params: our tree; fetched tensor by tensor.
    """
    dtype = stored_dtype(base.path)
    weights.save(folder, base.network, params, np.dtype(dtype))
    fields = storage.read_json(base.path / "config.json")
    # transformers 5 calls it dtype and reads both; others read torch_dtype.
    fields |= {key: dtype for key in ("torch_dtype", "dtype") if key in fields} or {
        "torch_dtype": dtype
    }
    # What was saved without a head may be called a bare model; this one has a head.
    fields["architectures"] = [families.family_of(base.network).architecture]
    storage.write_json(folder / "config.json", fields)
    copy_files(base.path, folder, "generation_config.json")
    copy_tokenizer(base, folder)


def copy_tokenizer(base: Pretrained, folder: pathlib.Path) -> None:
    """Copies the base model's tokenizer, so that it loads without the base model's config.json.

    Its files, not what transformers 5 would save: that names classes that older versions do not
    know.
    """
    copy_files(base.path, folder, *reading.names(base.path))
    special_tokens.mend(folder, base.vocabulary.tokenizer)
    path = folder / "tokenizer_config.json"
    fields = storage.read_json(path) if path.exists() else {}
    if "tokenizer_class" not in fields:  # then the model's type decides, which an adapter lacks
        kind = type(base.vocabulary.tokenizer)
        generic = kind is transformers.PreTrainedTokenizerFast
        fields["tokenizer_class"] = "PreTrainedTokenizerFast" if generic else kind.__name__
        storage.write_json(path, fields)


def copy_files(source: pathlib.Path, folder: pathlib.Path, *names: str) -> None:
    """Copies those of the files that are there, following links as `storage.followed` allows."""
    for name in names:
        if (source / name).exists():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(storage.followed(source, source / name), folder / name)
