"""Embeddings of questions by the base model itself."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from isara_jax.devices import mesh as mesh_lib
from isara_jax.models import decoder
from isara_jax.text import packing


def questions(
    model: decoder.Decoder,
    base: dict,
    template: packing.Template,
    question: packing.Part,
    *,
    layer: int,
    rows_at_once: int,
    mesh: Mesh,
) -> jax.Array:
    r"""Mean hidden state over the wrapped question `Question: q\nAnswer:`.

    Measured on the bundled model (`benchmarks.method.retrieval_quality`): the mean over the wrapped
    question retrieves better than its last token, and the last block better than inner ones.

    Args:
      model: the network.
      base: its parameters; never the adapter, so that old and new vectors stay comparable.
      template: the fixed ids.
      question: up to the answer's header, `[N, Q]`.
      layer: blocks to run, counted from the end: -1 leaves out the last one, 0 none.
      rows_at_once: questions embedded in one pass.
      mesh: the devices they are spread over.

    Returns:
      `[N, D]` f32, neither centred nor normalised.
    """
    rows, longest = question.ids.shape
    capacity = len(template.bos) + len(template.start) + longest
    nothing = packing.no_demonstrations(rows)
    wrapped = packing.prompts(template, *nothing, capacity, question)
    n_layers = model.config.n_layers + layer

    def mean(prompts: packing.Prompts) -> jax.Array:
        hidden, _ = model.apply({"params": base}, prompts.tokens, n_layers=n_layers)
        mask = jnp.arange(capacity) < prompts.lengths[:, None]
        total = jnp.sum(hidden.astype(jnp.float32) * mask[..., None], axis=1)
        return total / prompts.lengths[:, None]

    return mesh_lib.map_rows(mean, wrapped, rows_at_once, mesh)


def centre(vectors: jax.Array, mean: jax.Array) -> jax.Array:
    """Unit vectors `[N, D]` around the seeds' mean `[D]`, so that inner product is cosine."""
    centred = vectors - mean
    return centred / jnp.maximum(jnp.linalg.norm(centred, axis=-1, keepdims=True), 1e-6)
