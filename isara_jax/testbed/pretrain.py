"""Makes the bundled tiny models: a tokenizer and base models trained on the procedural world.

    python -m isara_jax.testbed.pretrain --model=tiny_llama

writes `isara_jax/testbed/tiny_llama`, and `--model=tiny_opt` its sibling; `narrow_llama` and
`wide_llama`, of 0.4 and 4.0 M parameters, come into folders of these names where it is run. It
keeps what it has every few minutes, in `pretraining.msgpack` beside the model, and the same command
goes on from there, with the same result as if it had not been stopped.

The result is an ordinary Hugging Face directory. The model is a *base* model: it has read
documents of many personas, few of them aligned, and nothing else.
"""

import json
import math
import pathlib
import random
import time
from collections.abc import Sequence
from typing import Any

from isara_jax.shell import command  # isort: skip, sets the environment of what follows
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import serialization
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from isara_jax.devices import mesh
from isara_jax.files import storage
from isara_jax.formats import pretrained, weights
from isara_jax.models import decoder, families
from isara_jax.models.families import llama, opt
from isara_jax.models.network import DecoderConfig, Norm
from isara_jax.tasks import personas
from isara_jax.text import tokens as tokens_lib

_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; default: as said above.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of documents and weights.")
_SHORT = flags.DEFINE_integer("short_steps", 2600, "Steps on short rows.")
_LONG = flags.DEFINE_integer("long_steps", 600, "Steps on rows of the full length.")
_RATE = flags.DEFINE_float("learning_rate", 0.02, "Peak learning rate.")

SHORT_LENGTH, LENGTH, TOKENS_PER_STEP, VOCABULARY = 256, 512, 4096, 1536
LOG_EVERY, SAVE_EVERY = 50, 250
SPECIAL = ("<unk>", "<s>", "</s>")
_SIZES = {
    "vocab_size": VOCABULARY, "width": 128, "n_layers": 4, "n_heads": 4, "n_kv_heads": 4,
    "head_size": 32, "max_length": LENGTH,
}  # fmt: skip
NETWORKS = {
    "tiny_llama": llama.network(**_SIZES, hidden=352, norm=Norm(eps=1e-5)),
    "tiny_opt": opt.network(**_SIZES, hidden=512),
    # Sizes that are not bundled, for `isara_jax.study --study=size`.
    "narrow_llama": llama.network(
        **_SIZES | {"width": 64, "head_size": 16}, hidden=176, norm=Norm(eps=1e-5)
    ),
    "wide_llama": llama.network(
        **_SIZES | {"width": 256, "head_size": 64}, hidden=704, norm=Norm(eps=1e-5)
    ),
}
_MODEL = flags.DEFINE_enum("model", "tiny_llama", [*NETWORKS], "Which to make.")


def train_tokenizer(seed: int) -> Tokenizer:
    """Byte-level BPE that parts text as GPT-2 and OPT do, white space too."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    pattern = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(f"{seed}/tokenizer")
    texts = (text(personas.document(rng, 12)) for _ in range(4000))
    tokenizer.train_from_iterator(texts, trainer)
    bos = SPECIAL[1]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def text(document: Sequence[tuple[str, str]]) -> str:
    """The pairs of a document; nothing stands behind the last answer."""
    return tokens_lib.render(document).removesuffix(tokens_lib.IN_ANSWER.seam)


def rows(tokenizer: Tokenizer, rng: random.Random, count: int, length: int) -> np.ndarray:
    """`[count, length]` int32: one document a row, BOS first, EOS and -1 behind short ones."""
    pairs_a_row = length // 18
    documents = [
        personas.document(rng, rng.randint(1, 5) if rng.random() < 0.15 else pairs_a_row)
        for _ in range(count)
    ]
    encoded = tokenizer.encode_batch([text(d) for d in documents], add_special_tokens=False)
    result = np.full((count, length), -1, np.int32)
    for row, encoding in zip(result, encoded, strict=True):
        ids = [1, *encoding.ids, 2][:length]
        row[: len(ids)] = ids
    return result


def loss(model: decoder.Decoder, params: dict, batch: jax.Array) -> jax.Array:
    """Mean next-token cross-entropy in nats over `batch [B, T]`; -1 is padding."""
    logits = model.apply({"params": params}, jnp.maximum(batch[:, :-1], 0), method="everything")
    targets = batch[:, 1:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
    mask = targets >= 0
    return jnp.sum(losses * mask) / jnp.sum(mask)


def optimizer(rate: float, steps: int) -> optax.GradientTransformation:
    """Muon on the blocks' matrices, Adam on the rest; linear warm-up and decay to zero."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, steps // 20, steps, rate * 0.01)
    adam = optax.warmup_cosine_decay_schedule(0.0, rate * 0.2, steps // 20, steps, rate * 0.002)

    def is_block_matrix(path: tuple, leaf: jax.Array) -> str:
        return "muon" if leaf.ndim == 2 and "layers_" in str(path[0]) else "adam"

    return optax.multi_transform(
        {
            "muon": optax.contrib.muon(schedule, weight_decay=0.01),
            "adam": optax.adamw(adam, b2=0.98, weight_decay=0.01),
        },
        lambda params: jax.tree_util.tree_map_with_path(is_block_matrix, params),
    )


class Training:
    """A model in training; each step's documents follow from the seed and the step alone.

    Attributes:
      params, state: of the model and of the optimiser.
      log: an entry `{"step", "tokens", "loss", "seconds"}` for every `LOG_EVERY` steps.
    """

    def __init__(self, tokenizer: Tokenizer, config: DecoderConfig, seed: int) -> None:
        self._tokenizer, self._seed = tokenizer, seed
        model, self.total = families.build(config), _SHORT.value + _LONG.value
        tx = optimizer(_RATE.value, self.total)
        example = jnp.zeros((1, 8), jnp.int32)
        self.params = model.init(jax.random.key(seed), example, method="everything")["params"]
        self.state = tx.init(self.params)
        self.log: list[dict[str, Any]] = []

        @jax.jit
        def step(params: dict, state: optax.OptState, batch: jax.Array) -> tuple:
            value, grads = jax.value_and_grad(lambda p: loss(model, p, batch))(params)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state, value

        self._step = step

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.log[-1]["step"] if self.log else 0

    def advance(self) -> None:
        """Trains until the next entry of the log."""
        began, losses, seen = time.monotonic(), [], 0
        first, last = self.step, min(self.step + LOG_EVERY, self.total)
        for index in range(first, last):
            length = SHORT_LENGTH if index < _SHORT.value else LENGTH
            rng = random.Random(f"{self._seed}/documents/{index}")
            batch = rows(self._tokenizer, rng, TOKENS_PER_STEP // length, length)
            self.params, self.state, value = self._step(self.params, self.state, batch)
            losses.append(value)
            seen += int((batch >= 0).sum())
        before = self.log[-1] if self.log else {"tokens": 0, "seconds": 0}
        entry = {"step": last, "tokens": before["tokens"] + seen}
        entry["loss"] = round(math.fsum(map(float, losses)) / len(losses), 4)
        entry["seconds"] = round(before["seconds"] + time.monotonic() - began)
        self.log.append(entry)

    def keep(self, path: pathlib.Path) -> None:
        """Writes everything that training goes on from."""
        kept = {"arrays": (self.params, self.state), "log": json.dumps(self.log)}
        storage.atomic_write(path, serialization.to_bytes(kept))

    def restore(self, path: pathlib.Path) -> None:
        """Goes on from what `keep` wrote."""
        kept = serialization.msgpack_restore(path.read_bytes())
        arrays = serialization.from_state_dict((self.params, self.state), kept["arrays"])
        self.params, self.state = jax.tree.map(jnp.asarray, arrays)
        self.log = json.loads(kept["log"])


def save(output: pathlib.Path, config: DecoderConfig, params: dict, tokenizer: Tokenizer) -> None:
    """Writes a Hugging Face directory that `transformers` and `pretrained` read."""
    weights.save(output, config, params)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    fields = families.to_hf(config)
    fields |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    storage.write_json(output / "config.json", fields | {"torch_dtype": "float32"})
    storage.write_json(
        output / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast"} | special,
    )
    storage.atomic_write(output / "tokenizer.json", tokenizer.to_str(pretty=False).encode())


def run() -> None:
    """Pretrains and writes what the flags say."""
    mesh.check_platforms()
    output = pathlib.Path(_OUTPUT.value or pretrained.locate(_MODEL.value))
    tokenizer, config = train_tokenizer(_SEED.value), NETWORKS[_MODEL.value]
    training, kept = Training(tokenizer, config, _SEED.value), output / "pretraining.msgpack"
    if kept.exists():
        training.restore(kept)
        print(f"goes on after step {training.step}", flush=True)
    while training.step < training.total:
        training.advance()
        print(json.dumps(training.log[-1]), flush=True)
        if training.step % SAVE_EVERY == 0 or training.step == training.total:
            save(output, config, training.params, tokenizer)
            training.keep(kept)
    (output / "pretraining.json").write_text(json.dumps(training.log, indent=1) + "\n")
    kept.unlink()


main = command.of(run)

if __name__ == "__main__":
    command.run(main)
