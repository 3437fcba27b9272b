"""Which embedding retrieves best: the share of the 4 nearest seeds in the query's topic.

    python -m benchmarks.method.retrieval_quality

For each block of the bundled model and each way to pool it. `retrieval.layer` has its default from
this table, and `isara_jax.method.embed` its pooling.
"""

import random

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from isara_jax.devices import mesh
from isara_jax.formats import pretrained
from isara_jax.method.embed import centre
from isara_jax.models import decoder
from isara_jax.tasks import world
from isara_jax.text import packing, tokens

POOL, QUERIES, NEIGHBOURS = 256, 256, 4


def _hidden(model: decoder.Decoder, params: dict, ids: np.ndarray) -> list[jax.Array]:
    """Hidden states `[N, T, D]` after each number of blocks."""
    run = jax.jit(
        lambda n: model.apply({"params": params}, jnp.asarray(ids), n_layers=n)[0], static_argnums=0
    )
    return [run(n) for n in range(model.config.n_layers + 1)]


def _pooled(hidden: jax.Array, lengths: np.ndarray) -> dict[str, jax.Array]:
    mask = jnp.arange(hidden.shape[1]) < lengths[:, None]
    mean = jnp.sum(hidden * mask[..., None], axis=1) / lengths[:, None]
    last = hidden[jnp.arange(len(lengths)), lengths - 1]
    return {"mean": mean, "last token": last}


def _share(pool: jax.Array, queries: jax.Array, pool_topics: list, query_topics: list) -> float:
    nearest = np.argsort(-np.asarray(queries @ pool.T), axis=1)[:, :NEIGHBOURS]
    same = [
        [pool_topics[j] == t for j in row] for row, t in zip(nearest, query_topics, strict=True)
    ]
    return float(np.mean(same))


def main(_: list[str]) -> None:
    base = pretrained.read("tiny_llama")
    vocabulary = base.vocabulary
    model, params = base.load("float32", mesh.make())
    rng = random.Random(0)
    for name, domains in (("safety", ("safety",)), ("mixed", world.DOMAINS)):
        drawn = [world.sample(rng, rng.choice(domains), held_out=i >= POOL)
                 for i in range(POOL + QUERIES)]  # fmt: skip
        asked = vocabulary.plain([tokens.render([], q.text) for q in drawn])
        rows = [[*vocabulary.begin, *row] for row in asked]
        ids, lengths = packing.pad(rows, max(map(len, rows)))
        topics = [q.topic for q in drawn]
        for n_layers, hidden in enumerate(_hidden(model, params, ids)):
            for pooling, vectors in _pooled(hidden, lengths).items():
                shares = []
                for mean in (jnp.mean(vectors[:POOL], axis=0), jnp.zeros(vectors.shape[1])):
                    unit = centre(vectors, mean)
                    shares.append(_share(unit[:POOL], unit[POOL:], topics[:POOL], topics[POOL:]))
                print(f"{name:<8} after block {n_layers}  {pooling:<11} "
                      f"centred {shares[0]:.3f}  not centred {shares[1]:.3f}")  # fmt: skip


if __name__ == "__main__":
    app.run(main)
