"""Ways to make bad inputs in an empty folder, and to have them read as a command reads them."""

import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import fsspec
import ml_collections
import numpy as np

from isara_jax import config, convert
from isara_jax.devices import mesh
from isara_jax.formats import adapters, pretrained, weights
from isara_jax.models import lora
from isara_jax.tasks import files

MODEL = pretrained.BUNDLED["tiny_llama"]
Change = Callable[[pathlib.Path], Any]  # of a folder


def seeds(content: str | bytes, name: str = "seeds.jsonl") -> Change:
    def use(folder: pathlib.Path) -> Any:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return files.read_seeds(folder / name)

    return use


def table(write: Change) -> Change:
    """A parquet file that pyarrow writes."""

    def use(folder: pathlib.Path) -> Any:
        write(folder / "seeds.parquet")
        return files.read_seeds(folder / "seeds.parquet")

    return use


def model(change: Change, load: bool = False) -> Change:
    """The bundled LLaMA with a change."""

    def use(folder: pathlib.Path) -> Any:
        for file in MODEL.iterdir():
            shutil.copyfile(file, folder / file.name)
        change(folder)
        base = pretrained.read_language_model(str(folder))
        return base.load("float32", mesh.make()) if load else base

    return use


def fields(name: str, **changed: Any) -> Change:
    """Sets fields of one of a folder's JSON files."""

    def change(folder: pathlib.Path) -> None:
        path = folder / name
        values = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(values | changed))

    return change


def model_config(**values: Any) -> Change:
    return model(fields("config.json", **values))


def written(name: str, content: str | bytes) -> Change:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data)


def link(name: str, target: str) -> Change:
    def change(folder: pathlib.Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def pipe(name: str) -> Change:
    def change(folder: pathlib.Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def header(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Changes the header of the weights; what `change` returns, bytes, is written in its place."""

    def mend(folder: pathlib.Path) -> None:
        path = folder / "model.safetensors"
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        text = change(header)
        text = text if isinstance(text, bytes) else json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])

    return model(mend, load=True)


def tensor(**fields: Any) -> Change:
    return header(lambda header: header["model.norm.weight"].update(fields))


def twice(header: dict[str, Any]) -> bytes:
    again = json.dumps({"model.norm.weight": header["model.norm.weight"]})
    return (json.dumps(header)[:-1] + f",{again[1:]}").encode()


def pattern(pattern: str) -> Change:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    steps = [split | {"invert": False}, last | {"use_regex": False}]
    both = {"type": "Sequence", "pretokenizers": steps}
    return model(fields("tokenizer.json", pre_tokenizer=both))


def doubled(times: int) -> dict[str, Any]:
    step = {"type": "Replace", "pattern": {"Regex": "."}, "content": "aa"}
    return {"type": "Sequence", "normalizers": [step] * times}


def elsewhere(folder: pathlib.Path) -> None:
    """Settings that name a tokenizer outside of the folder, whose own is empty."""
    shutil.move(folder / "tokenizer.json", folder.parent / "tokenizer.4.json")
    (folder / "tokenizer.json").write_text("{}")
    fields("tokenizer_config.json", fast_tokenizer_files=["../tokenizer.4.json"])(folder)


def adapter(change: Change) -> Change:
    """A good adapter of the bundled LLaMA, with a change."""

    def use(folder: pathlib.Path) -> Any:
        network = weights.load_config(MODEL)
        settings = config.Lora(rank=2)
        flat = {}
        for layer, (inputs, outputs) in lora.target_shapes(network, settings).items():
            flat["/".join((*layer, "a"))] = np.ones((inputs, 2), np.float32)
            flat["/".join((*layer, "b"))] = np.ones((2, outputs), np.float32)
        adapters.save(folder, network, weights.unflatten(flat), settings, "base")
        change(folder)
        return adapters.load(folder, network)

    return use


def adapter_config(**values: Any) -> Change:
    return adapter(fields("adapter_config.json", **values))


def flag(path: str, value: Any) -> Change:
    def use(folder: pathlib.Path) -> Any:
        values = config.default()
        with values.unlocked(), values.ignore_type():
            *groups, name = path.split(".")
            node = values
            for group in groups:
                node = node[group]
            node[name] = value
        return config.resolve(ml_collections.ConfigDict(values))

    return use


def gguf(content: bytes) -> Change:
    def use(folder: pathlib.Path) -> Any:
        (folder / "model.gguf").write_bytes(content)
        return convert.run(str(folder / "model.gguf"), str(folder / "out"))

    return use


def store(url: str, **contents: bytes) -> Change:
    """A model at a URL."""

    def use(folder: pathlib.Path) -> Any:
        store = fsspec.filesystem("memory")
        for name, content in contents.items():
            store.pipe(f"/bucket/model/{name.replace('_DOT_', '.')}", content)
        return pretrained.locate(url)

    return use


def number(value: int, width: int) -> bytes:
    return value.to_bytes(width, "little")


def pipe_of_seeds(folder: pathlib.Path) -> Any:
    os.mkfifo(folder / "seeds.jsonl")
    return files.read_seeds(folder / "seeds.jsonl")


def folder_of_seeds(folder: pathlib.Path) -> Any:
    (folder / "seeds.jsonl").mkdir()
    return files.read_seeds(folder / "seeds.jsonl")


def first_bytes(content: bytes) -> Change:
    """Other first bytes of the weights."""

    def change(folder: pathlib.Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(content + path.read_bytes()[len(content) :])

    return change


def index(content: str) -> Change:
    def change(folder: pathlib.Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(content)

    return change


def indexed(file: Any) -> Change:
    """An index that says that a tensor is in some file."""
    return model(index(json.dumps({"weight_map": {"model.norm.weight": file}})), load=True)


def pickles(folder: pathlib.Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def nan_alpha(folder: pathlib.Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 32.0', '"lora_alpha": NaN'))
