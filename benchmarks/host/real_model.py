"""What suits a real language model, one factor at a time.

    python -m benchmarks.host.real_model --model=DIR --what=retrieval --topics=FILE.jsonl
    python -m benchmarks.host.real_model --model=DIR --what=shots --seeds=FILE.jsonl
    python -m benchmarks.host.real_model --model=DIR --what=sft --seeds=FILE.jsonl
    python -m benchmarks.host.real_model --model=DIR --what=isara --seeds=FILE.jsonl

`retrieval`: of each question's 4 nearest others, the share with its topic (`question`, and
`category` or `source`, a line), by embedding. `shots`: the loss of each seed's answer behind k of
the other seeds. `sft`: the loss of a quarter of the seeds after training on the rest. `isara`:
after training on the rest and what one iteration accepts.
"""

import functools
import itertools
import json
import math
import pathlib
import random
import tempfile
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from isara_jax import config
from isara_jax.devices import compilation_cache, mesh
from isara_jax.evaluate import answers, scores
from isara_jax.formats import pretrained
from isara_jax.host import setup
from isara_jax.host.executables import Executables
from isara_jax.method import iteration, train
from isara_jax.method.embed import centre
from isara_jax.method.state import State
from isara_jax.models import decoder, lora
from isara_jax.tasks import files
from isara_jax.text import packing, tokens

_MODEL = flags.DEFINE_string("model", None, "A Hugging Face directory.")
_WHAT = flags.DEFINE_enum("what", None, ["retrieval", "shots", "sft", "isara"], "What is measured.")
_TOPICS = flags.DEFINE_string("topics", "", "Questions with their topics.")
_SEEDS = flags.DEFINE_string("seeds", "", "Pairs.")
_PER_TOPIC = flags.DEFINE_integer("per_topic", 25, "Questions of each topic, at most.")
_LAYERS = flags.DEFINE_multi_integer("layer", [], "Layers tried, counted from the end.")
_K = flags.DEFINE_multi_integer("k", [0, 1, 2, 4, 6, 8], "Pairs shown.")
_RATES = flags.DEFINE_multi_float("rate", [1e-4, 3e-4, 1e-3], "Learning rates.")
_EPOCHS = flags.DEFINE_multi_integer("epochs", [1, 3, 6], "Passes over the seeds.")
_SAMPLES = flags.DEFINE_integer("samples", 192, "Drawn for `isara`.")
_ROWS = 8  # sequences at once
_NEIGHBOURS = 4
flags.mark_flags_as_required(["model", "what"])


class Reader:
    """Rows of tokens read by a model on the first device, a few at a time, short ones together."""

    def __init__(self, base: pretrained.Pretrained) -> None:
        self.base = base
        self.model, self.params = base.load("float32", mesh.make())
        self._compiled = functools.cache(
            lambda function: jax.jit(functools.partial(function, self.model))
        )

    def map(self, function: Callable, rows: Sequence[Sequence[int]], *more: Sequence) -> np.ndarray:
        """`function(params, ids [R, T], lengths [R], ...)` over all rows, in their order."""
        order = np.argsort([len(row) for row in rows], kind="stable")
        compiled = self._compiled(function)
        found: list = [None] * len(rows)
        for first in range(0, len(rows), _ROWS):
            picked = order[first : first + _ROWS]
            filled = np.pad(picked, (0, _ROWS - len(picked)), mode="edge")
            # Few widths: each is compiled.
            width = max(64, 2 ** math.ceil(math.log2(max(len(rows[i]) for i in filled))))
            ids, lengths = packing.pad([rows[i] for i in filled], width)
            extra = [np.asarray([column[i] for i in filled]) for column in more]
            out = np.asarray(compiled(self.params, ids, lengths, *extra))
            for place, i in enumerate(picked):
                found[i] = out[place]
        return np.stack(found)


def _pooled(
    layers: Sequence[int], model: decoder.Decoder, params: dict, ids: jax.Array, lengths: jax.Array,
    begin: jax.Array,
) -> jax.Array:  # fmt: skip
    """Mean over all tokens, mean over the question's own, last token: `[R, L, 3, D]`."""
    places = jnp.arange(ids.shape[1])
    whole = places < lengths[:, None]
    own = whole & (places >= begin[:, None, 0]) & (places < begin[:, None, 1])
    last = places == lengths[:, None] - 1
    found = []
    for layer in layers:
        hidden = model.apply({"params": params}, ids, n_layers=model.config.n_layers + layer)[0]
        weights = jnp.stack([whole, own, last]).astype(jnp.float32)
        weights /= jnp.sum(weights, axis=-1, keepdims=True)
        found.append(jnp.einsum("mrt,rtd->rmd", weights, hidden))
    return jnp.stack(found, axis=1)


def retrieval(reader: Reader) -> None:
    """The share of neighbours of a question's own topic, for every embedding."""
    rows = [json.loads(line) for line in pathlib.Path(_TOPICS.value).read_text().splitlines()]
    random.Random(0).shuffle(rows)
    by_topic: dict[str, list[str]] = {}
    for row in rows:
        topic = row.get("category") or row["source"]
        if len(by_topic.setdefault(topic, [])) < _PER_TOPIC.value:
            by_topic[topic].append(row["question"].strip())
    texts = [text for group in by_topic.values() for text in group]
    topics = np.asarray([topic for topic, group in by_topic.items() for _ in group])
    n_layers = reader.base.network.n_layers
    layers = _LAYERS.value or sorted({0, -1, -n_layers // 6, -n_layers // 3, -n_layers // 2,
                                      -2 * n_layers // 3, -5 * n_layers // 6})[::-1]  # fmt: skip
    print(f"{len(texts)} questions on {len(by_topic)} topics; share of the {_NEIGHBOURS} nearest")
    print("with the same topic\n| BOS | layer | tokens | centred | not |\n|---|---|---|---|---|")
    vocabulary = reader.base.vocabulary
    bos = vocabulary.tokenizer.bos_token_id
    (head,) = vocabulary.plain([tokens.QUESTION])
    wrapped = vocabulary.plain([tokens.render([], text) for text in texts])
    bare = vocabulary.spellings(texts, tokens.IN_QUESTION)
    for begin in ([], [bos]):
        ids = [begin + row for row in wrapped]
        start = len(begin) + len(head)
        own = [(start, start + len(one.bare)) for one in bare]
        vectors = reader.map(functools.partial(_pooled, layers), ids, own)
        for at, layer in enumerate(layers):
            for kind, name in enumerate(("all", "the question's", "last")):
                found = [_share(vectors[:, at, kind], topics, centred) for centred in (True, False)]
                print(f"| {'yes' if begin else 'no'} | {layer} | {name} | {found[0]:.3f} "
                      f"| {found[1]:.3f} |", flush=True)  # fmt: skip


def _share(vectors: np.ndarray, topics: np.ndarray, centred: bool) -> float:
    nearest = _nearest(vectors, centred)[:, :_NEIGHBOURS]
    return float(np.mean(topics[nearest] == topics[:, None]))


def _nearest(vectors: np.ndarray, centred: bool = True) -> np.ndarray:
    """The other rows `[N, N]` of each row, nearest first, itself last."""
    mean = vectors.mean(axis=0) if centred else np.zeros(vectors.shape[1])
    unit = np.asarray(centre(jnp.asarray(vectors), jnp.asarray(mean)))
    scores = unit @ unit.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1)


def _answer_loss(
    model: decoder.Decoder, params: dict, ids: jax.Array, lengths: jax.Array, begin: jax.Array
) -> jax.Array:
    batch = train.Sequences(ids, lengths, begin, None)
    losses, inside = train.answer_losses(model, {"params": params}, batch, 256)
    return jnp.stack([jnp.sum(losses * inside, axis=1), jnp.sum(inside, axis=1)], axis=1)


def shots(reader: Reader) -> None:
    """Nats a token of each seed's answer behind k others: the nearest, or random ones."""
    pairs = [(p.question, p.answer) for p in files.read_pairs(_SEEDS.value)]
    vocabulary = reader.base.vocabulary
    begin = list(vocabulary.begin)
    wrapped = [begin + row for row in vocabulary.plain([tokens.render([], q) for q, _ in pairs])]
    (head,) = vocabulary.plain([tokens.QUESTION])
    start = len(begin) + len(head)
    bare = vocabulary.spellings([q for q, _ in pairs], tokens.IN_QUESTION)
    own = [(start, start + len(one.bare)) for one in bare]
    layers = _LAYERS.value or [0]
    vectors = reader.map(functools.partial(_pooled, layers), wrapped, own)
    rng = np.random.default_rng(0)
    others = [[j for j in range(len(pairs)) if j != i] for i in range(len(pairs))]
    orders = {"random": np.stack([rng.permutation(row) for row in others])}
    for at, layer in enumerate(layers):
        for kind, name in enumerate(("all", "the question's")):
            orders[f"nearest, layer {layer}, {name}"] = _nearest(vectors[:, at, kind])
    print(
        f"{len(pairs)} seeds, each behind k of the others: nats a token, and the difference to the"
    )
    print("row before it, paired (95 %)\n| k | shown | loss | difference |\n|---|---|---|---|")
    before = None
    for k in _K.value:
        for name, order in orders.items() if k else [("none", orders["random"])]:
            texts = [([pairs[j] for j in order[i, :k][::-1]], *pairs[i]) for i in range(len(pairs))]
            prompts = vocabulary.plain([tokens.render(shown, q) for shown, q, _ in texts])
            whole = vocabulary.plain([f"{tokens.render(shown, q)} {a}" for shown, q, a in texts])
            rows = [begin + row for row in whole]
            starts = [len(begin) + len(row) for row in prompts]
            found = reader.map(_answer_loss, rows, starts)
            said = "" if before is None else _paired(before, found)
            print(f"| {k} | {name} | {_mean(found):.3f} | {said} |", flush=True)
            before = found


def _mean(found: np.ndarray) -> float:
    """Nats a token, of losses and tokens `[N, 2]`."""
    return float(found[:, 0].sum() / found[:, 1].sum())


def _paired(old: np.ndarray, new: np.ndarray) -> str:
    """Difference of the token-weighted means over the same answers, and its interval."""
    value, (low, high) = scores.ratio(new[:, 0] - old[:, 0], old[:, 1])
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"


class _Trained:
    """Own pairs, and the losses of a quarter of them by models trained on the rest."""

    def __init__(self) -> None:
        c = config.default()
        c.model.path, c.task.name, c.task.seeds = _MODEL.value, "seeds", _SEEDS.value
        c.task.held_out = len(files.read_pairs(_SEEDS.value)) // 4
        c.train.batch_size, c.train.epochs = 16, 1
        c.samples_per_iteration, c.iterations = _SAMPLES.value, 1
        with tempfile.TemporaryDirectory() as folder:
            self.setup = setup.prepare(config.resolve(c), pathlib.Path(folder), None)
        self.exe = Executables(self.setup.program, self.setup.inputs)
        self.batch_size = c.train.batch_size
        self._questions = answers.Questions(self.setup.measured.held_out)

    def start(self) -> State:
        return self.exe.start(self.setup.seeds)

    def loss(self, trainable: lora.Trainable) -> np.ndarray:
        """Nats and tokens `[N, 2]` of the held-out answers."""
        logs, sizes = jax.device_get(
            self.exe.log_likelihood("score", trainable, self._questions, 0)
        )
        return np.stack([-logs, sizes], axis=1)

    def place(self, value: np.generic) -> jax.Array:
        return mesh.place(value, self.setup.program.mesh)

    def grid(self, what: str, fit: Callable[[int], lora.Trainable]) -> None:
        """Prints the losses after `fit(epochs)` by rate and epochs."""
        before = self.loss(self.start().trainable)
        print(f"{what}, {len(self.setup.task.items)} held out: {_mean(before):.3f} nats")
        print("| rate | epochs | loss | difference to before, paired (95 %) |\n|---|---|---|---|")
        hyper = self.setup.inputs.hyper
        for rate, epochs in itertools.product(_RATES.value, _EPOCHS.value):
            traced = hyper.train._replace(
                learning_rate=self.place(np.float32(rate)), epochs=self.place(np.int32(epochs))
            )
            self.exe.inputs = self.setup.inputs._replace(hyper=hyper._replace(train=traced))
            after = self.loss(fit(epochs))
            said = f"| {rate:g} | {epochs} | {_mean(after):.3f} | {_paired(before, after)} |"
            print(said, flush=True)


def sft(trained: _Trained) -> None:
    """The loss of held-out answers after training on the other seeds."""
    start, n_seeds = trained.start(), len(trained.setup.task.seeds)

    def fit(epochs: int) -> lora.Trainable:
        steps = np.int32(epochs * math.ceil(n_seeds / trained.batch_size))
        n, steps = map(trained.place, (np.int32(n_seeds), steps))
        return trained.exe.fine_tune_on_seeds(start, n, steps).trainable

    trained.grid(f"{n_seeds} seeds", fit)


def isara(trained: _Trained) -> None:
    """The same after training on what one iteration accepts and, as it does, the seeds."""
    state, report = trained.exe.step(trained.start())
    accepted = int(np.sum(jax.device_get(report.reason) == 0))
    function = functools.partial(iteration.fine_tune, trained.setup.program)
    fresh, step = trained.start().trainable, trained.place(np.int32(0))

    def fit(epochs: int) -> lora.Trainable:
        del epochs  # in the inputs
        return trained.exe.call(
            "fit", function, trained.exe.inputs, fresh, state.pool, step
        ).trainable

    trained.grid(f"{accepted} of {_SAMPLES.value} samples", fit)


def main(_: list[str]) -> None:
    compilation_cache.keep_compiled_programs()
    if _WHAT.value in ("sft", "isara"):
        {"sft": sft, "isara": isara}[_WHAT.value](_Trained())
        return
    reader = Reader(pretrained.read_language_model(_MODEL.value))
    {"retrieval": retrieval, "shots": shots}[_WHAT.value](reader)


if __name__ == "__main__":
    app.run(main)
