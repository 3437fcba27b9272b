"""What is measured: one ISARA iteration, on a bundled model or on random weights of a known shape.

The texts of random models are random ids, with lengths distributed as those of real safety seeds.
"""

import dataclasses
import datetime
import json
import pathlib
import platform
import runpy
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from isara_jax import config
from isara_jax.devices import mesh
from isara_jax.files import storage
from isara_jax.formats import pretrained, weights
from isara_jax.host import placement, setup
from isara_jax.method.program import Hyper, Inputs, Program, Sizes
from isara_jax.models import decoder, families, shapes
from isara_jax.models.network import DecoderConfig
from isara_jax.text import encoding, packing, stops, tokens

NETWORKS = {
    name: shapes.NETWORKS[name]
    for name in ("llama_58m", "llama_7b", "opt_6.7b", "llama3_8b", "mistral_7b", "gemma3_4b")
}
BUNDLED = ("tiny_llama", "tiny_opt")

SEEDS = 64


def seed_lengths() -> np.ndarray:
    """Tokens of questions and answers `[SEEDS, 2]`: mean, spread and bounds of real seeds."""
    drawn = np.random.default_rng(0).normal((13.0, 68.5), (3.0, 23.0), (SEEDS, 2))
    return np.clip(np.rint(drawn), (8, 27), (20, 122)).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Size:
    """How much an iteration does.

    Attributes:
      samples: N.
      slots: sequences decoded at once.
      k: demonstrations offered to a prompt; what fits is shown.
      prompt: capacity of a prompt in tokens.
      new: tokens of a question and of an answer, at most.
      batch: training sequences of an optimiser step.
      epochs: over the samples.
      pool: rows the pool has room for beyond those of the seeds and samples.
    """

    samples: int
    slots: int
    k: int
    prompt: int
    new: int
    batch: int
    epochs: int
    pool: int = 0


_LARGE = Size(samples=1024, slots=128, k=12, prompt=1024, new=128, batch=32, epochs=3)
SIZES = dict.fromkeys(NETWORKS, _LARGE) | {
    "llama_58m": Size(samples=64, slots=16, k=4, prompt=256, new=64, batch=16, epochs=3),
}


class Alphabet:
    """A tokenizer's stand-in: each id spells a character of its own, so every text survives."""

    bos, eos, header = 1, 2, (3, 4, 5)
    _FIRST = 0x10000  # from here on neither white space nor surrogates

    def __init__(self, size: int) -> None:
        self.bytes = [chr(self._FIRST + i).encode() for i in range(size)]

    @property
    def template(self) -> packing.Template:
        to_answer, to_question = (
            len(self._seam(p)) for p in (tokens.IN_QUESTION, tokens.IN_ANSWER)
        )
        return packing.Template((self.bos,), self.eos, self.header, to_answer, to_question)

    def _seam(self, place: tokens.Place) -> tuple[int, ...]:
        """A header as long as the template's, behind an answer two more for the blank line."""
        return self.header if place == tokens.IN_QUESTION else (6, 7, *self.header)

    def joined(self, ids: Sequence[int], place: tokens.Place) -> tokens.Spelling:
        """As a text stands in the template."""
        return tokens.Spelling([*ids], [*ids, *self._seam(place)])

    def try_spellings(self, texts: Sequence[str], place: tokens.Place) -> list[tokens.Spelling]:
        """As of `tokens.Vocabulary`."""
        return [self.joined([ord(c) - self._FIRST for c in text], place) for text in texts]


class Workload(NamedTuple):
    """A program, what it reads, and its seeds on the devices."""

    program: Program
    inputs: Inputs
    seeds: packing.Pairs


def bundled(name: str, **changed: Any) -> Workload:
    """The first iteration of the README's run."""
    values = runpy.run_path("configs/safety.py")["get_config"](name)
    values.update_from_flattened_dict(changed)
    with tempfile.TemporaryDirectory() as folder:
        made = setup.prepare(config.resolve(values), pathlib.Path(folder), None)
    return Workload(made.program, made.inputs, made.seeds)


def random(
    network: DecoderConfig, size: Size, dtype: str = "auto", kv_cache: str = "auto"
) -> Workload:
    """An iteration of random weights; nothing ends before its last token, everything is kept."""
    c = _config(size, dtype)
    devices = mesh.make()
    model = pretrained.Pretrained(pathlib.Path(), network, None).build(dtype, devices, kv_cache)
    vocabulary = Alphabet(network.vocab_size)
    seeds = _random_pairs(vocabulary, size.new)
    program = Program(
        config=c, model=model, vocabulary=vocabulary, template=vocabulary.template,
        mesh=devices, sizes=Sizes.of(c, vocabulary.template, SEEDS, 0, network.max_length),
    )  # fmt: skip
    base = random_params(model, devices)
    nothing = stops.stop_table(vocabulary.bytes, (), ())
    inputs = Inputs(base, None, nothing, nothing, Hyper.of(c))
    whole = mesh.replicated(devices)
    placed = jax.device_put(inputs, setup.inputs_sharding(inputs, base, whole))
    program = setup.plan_training(program, placement.placed_bytes(base))
    return Workload(program, placed, jax.device_put(seeds, whole))


def _config(size: Size, dtype: str) -> config.Config:
    stage = {"k": size.k, "max_tokens": size.new, "prompt_tokens": size.prompt}
    return config.Config(
        samples_per_iteration=size.samples,
        slots=size.slots,
        iterations=1 + -(-size.pool // size.samples),
        execution="staged",
        model=config.Model(dtype=dtype),
        question=config.Question(**stage),
        answer=config.Answer(**stage),
        filters=config.Filters(finished=False, rouge_l=2.0),
        train=config.Train(
            data="latest", include_seeds=False, batch_size=size.batch, epochs=size.epochs
        ),
    )


def _random_pairs(vocabulary: Alphabet, longest: int) -> packing.Pairs:
    """Seeds of random ids; longer ones are cut to what a generated text may have."""
    rng, texts = np.random.default_rng(0), []
    for part, place in enumerate((tokens.IN_QUESTION, tokens.IN_ANSWER)):
        lengths = np.minimum(seed_lengths()[:, part], longest)
        ids = rng.integers(8, len(vocabulary.bytes), (len(lengths), longest), np.int32)
        spelled = [vocabulary.joined(row[:n], place) for row, n in zip(ids, lengths, strict=True)]
        room = encoding.Room(longest, longest + vocabulary.template.seam(place))
        texts.append(encoding.as_text(spelled, room))
    return packing.Pairs(*texts)


def random_params(model: decoder.Decoder, devices: jax.sharding.Mesh) -> dict[str, Any]:
    """Weights drawn on the devices: normal (0.02), norms one, biases zero."""
    shapes = weights.flatten(weights.abstract_params(model))
    places = {p: weights.sharding(model.config, p, s.shape, devices) for p, s in shapes.items()}

    def draw() -> dict[str, Any]:
        drawn = {}
        for index, (path, leaf) in enumerate(shapes.items()):
            kind = path.split("/")[-1]
            if kind in ("scale", "bias"):
                drawn[path] = jnp.full(leaf.shape, float(kind == "scale"), leaf.dtype)
            else:
                key = jax.random.fold_in(jax.random.key(0), index)
                drawn[path] = 0.02 * jax.random.normal(key, leaf.shape, leaf.dtype)
        return drawn

    return weights.unflatten(jax.jit(draw, out_shardings=places)())


def build(shape: str, dtype: str = "auto", kv_cache: str = "auto", **changed: Any) -> Workload:
    """The workload of a name of `BUNDLED` or `NETWORKS`; `changed` are fields of its `Size`."""
    if shape in BUNDLED:
        return bundled(shape, execution="staged", kv_cache=kv_cache)
    size = dataclasses.replace(SIZES[shape], **changed)
    return random(NETWORKS[shape], size, dtype, kv_cache)


def save_model(work: Workload, folder: pathlib.Path) -> None:
    """The model as a Hugging Face folder without a tokenizer, for a peer.

    Above 1e9 parameters without weights: random ones take as long.
    """
    network = work.program.model.config
    folder.mkdir()
    if sum(x.size for x in jax.tree.leaves(work.inputs.base)) < 1e9:
        weights.save(folder, network, work.inputs.base)
    storage.write_json(folder / "config.json", families.to_hf(network))


def where() -> dict[str, str]:
    """Machine, versions, commit and date of a measurement."""
    device = jax.devices()[0]
    name = device.device_kind
    if device.platform == "cpu":
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        models_named = [line.split(":")[1].strip() for line in lines if "model name" in line]
        name = f"{len(models_named)} cores of {models_named[0]}"
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "machine": name,
        "platform": device.platform,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "commit": commit or "unknown",
        "date": datetime.date.today().isoformat(),
    }


def append(path: str, result: dict[str, Any]) -> None:
    """Adds a line to a file of results."""
    with pathlib.Path(path).open("a") as file:
        file.write(json.dumps(result) + "\n")
