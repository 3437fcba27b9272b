"""Embeddings against torch, and nearest neighbours against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch

from isara_jax import config
from isara_jax.devices import mesh as mesh_lib
from isara_jax.method import embed, retrieval
from isara_jax.text import packing, tokens

CAPACITY, WIDTH, QUERIES = 300, 16, 25


def points(count, seed=0, spread=1.0):
    """A pool of `count` rows; the free ones hold what must never be found: a huge vector."""
    rng = np.random.default_rng(seed)
    pool = rng.normal(0, spread, (CAPACITY, WIDTH)).astype(np.float32)
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    pool[count:] = 50.0
    queries = rng.normal(size=(QUERIES, WIDTH)).astype(np.float32)
    return pool, queries / np.linalg.norm(queries, axis=1, keepdims=True)


def in_numpy(pool, count, queries, k):
    found = np.full((len(queries), k), -1)
    order = np.argsort(-(queries.astype(np.float64) @ pool[:count].T.astype(np.float64)), axis=1)
    found[:, : min(k, count)] = order[:, :k]
    return found


@functools.partial(jax.jit, static_argnames=("backend", "k"))
def nearest(backend, pool, count, queries, k):
    return retrieval.nearest(backend, tiny.mesh(), pool, count, queries, k)


@pytest.mark.parametrize("k", [1, 6])
@pytest.mark.parametrize("count", [0, 1, 4, 64, CAPACITY])
def test_both_backends_equal_numpy(count, k):
    """ScaNN and the device find NumPy's neighbours in its order; too few points give -1.

    Free rows, here longer than all others, are never found.
    """
    pool, queries = points(count)
    expected = in_numpy(pool, count, queries, k)
    for backend in ("scann", "device"):
        np.testing.assert_array_equal(nearest(backend, pool, count, queries, k), expected)
    assert (expected == -1).any() == (count < k)


def test_zero_rows_are_never_found():
    """Free rows are zero in the pool: they must not outrank points that point away."""
    pool, queries = points(5)
    pool[:5] = -queries[0]
    pool[:5] *= np.linspace(1, 2, 5, dtype=np.float32)[:, None]
    pool[5:] = 0
    for backend in ("scann", "device"):
        found = nearest(backend, pool, 5, queries[:1], 8)
        assert np.asarray(found).tolist() == [[0, 1, 2, 3, 4, -1, -1, -1]]


def test_scores_are_inner_products():
    """The device search also tells the scores, sorted, -inf where there is no neighbour."""
    pool, queries = points(4)
    rows, scores = retrieval.search_on_device(pool, jnp.int32(4), queries, 6)
    expected = -np.sort(-(queries @ pool[:4].T), axis=1)
    np.testing.assert_allclose(scores[:, :4], expected, rtol=1e-5)
    assert np.isneginf(scores[:, 4:]).all() and (np.asarray(rows)[:, 4:] == -1).all()


def test_pool_smaller_than_k_keeps_the_shape():
    """A capacity below k still gives k columns."""
    pool, queries = points(CAPACITY)
    rows, scores = retrieval.search_on_device(pool[:3], jnp.int32(3), queries, 7)
    assert rows.shape == scores.shape == (QUERIES, 7)
    np.testing.assert_array_equal(rows, in_numpy(pool[:3], 3, queries, 7))


def test_large_pools_use_an_approximate_index(monkeypatch):
    """Hashing with reordering, and the tree, still find most true neighbours, and valid rows."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(40, WIDTH))
    pool = (centres[rng.integers(0, 40, 3000)] + 0.3 * rng.normal(size=(3000, WIDTH))).astype("f4")
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    queries = pool[rng.integers(0, 2000, 50)]
    expected = in_numpy(pool, 2000, queries, 5)
    for name in ("HASH_FROM", "HASH_QUERIES", "TREE_QUERIES"):
        monkeypatch.setattr(retrieval, name, 50)
    for tree_from in (10_000, 1000):
        monkeypatch.setattr(retrieval, "TREE_FROM", tree_from)
        found = retrieval.search_with_scann(pool, np.int32(2000), queries, 5)
        assert found.max() < 2000
        shared = [len(set(a) & set(b)) for a, b in zip(found, expected, strict=True)]
        assert np.mean(shared) / 5 > 0.8


def test_an_index_is_built_only_where_its_queries_repay_it():
    """Few queries, or few points: every point is scored, which is exact and builds nothing."""
    points = np.random.default_rng(0).normal(size=(retrieval.HASH_FROM, 8)).astype("f4")
    for n, queries in ((len(points), retrieval.HASH_QUERIES - 1), (2000, 10**6)):
        index = retrieval.build_index(points[:n], 5, queries)
        found, _ = index.search_batched(points[:20])
        expected = np.argsort(-(points[:20] @ points[:n].T), axis=1)[:, :5]
        np.testing.assert_array_equal(found, expected)


def test_missing_scann_says_what_to_do(monkeypatch):
    """Where ScaNN has no wheel, the error names the field and the other backend."""
    monkeypatch.setitem(__import__("sys").modules, "scann", None)
    retrieval.check("device")
    with pytest.raises(config.ConfigError, match="config.retrieval.backend=device"):
        retrieval.check("scann")


# --- embeddings --------------------------------------------------------------------------------

TEXTS = ("", "ab", "the abc.\n\n é?", "a" * 20, "Question: x", "bab")


@functools.cache
def network():
    theirs = tiny.torch_llama(1, num_hidden_layers=3, num_key_value_heads=2)
    return theirs, *tiny.ported(theirs)


STATIC = ("model", "template", "layer", "rows_at_once", "mesh")
questions = jax.jit(embed.questions, static_argnames=STATIC)


def embedded(layer, rows_at_once, capacity=24):
    _, model, params = network()
    vocabulary = tiny.vocabulary("byte_level")
    question = tiny.texts(vocabulary, TEXTS, tokens.IN_QUESTION, capacity).joined
    template = packing.Template.of(vocabulary)
    return np.asarray(
        questions(
            model,
            params,
            template,
            question,
            layer=layer,
            rows_at_once=rows_at_once,
            mesh=mesh_lib.make(),
        )
    )


def hidden_means(layer):
    """The mean hidden state of each wrapped question, from torch, one by one, unpadded.

    `hidden_states` holds the last block's output after the final norm, so blocks are hooked.
    """
    theirs, _, _ = network()
    vocabulary, states = tiny.vocabulary("byte_level"), {}
    states_of = [theirs.model.embed_tokens, *theirs.model.layers]
    hooks = [
        module.register_forward_hook(
            lambda _, __, out, i=i: states.update({i: out[0] if isinstance(out, tuple) else out})
        )
        for i, module in enumerate(states_of)
    ]
    means = []
    for text in TEXTS:
        ids = [*vocabulary.begin, *vocabulary.plain([f"Question: {text}\nAnswer:"])[0]]
        with torch.no_grad():
            out = theirs.model(torch.tensor([ids]), output_hidden_states=True)
        index = len(states_of) - 1 + layer
        if layer:  # the same by HF's own list
            torch.testing.assert_close(out.hidden_states[index], states[index])
        means.append(states[index].reshape(len(ids), -1).mean(0).numpy())
    for hook in hooks:
        hook.remove()
    return np.array(means)


@pytest.mark.parametrize("layer", [0, -1, -2, -3])
def test_embeddings_equal_torch(layer):
    """The mean over `Question: q\\nAnswer:` of the chosen block's output, as HF computes it."""
    np.testing.assert_allclose(embedded(layer, 4), hidden_means(layer), rtol=1e-4, atol=1e-5)


def test_batching_and_padding_do_not_change_embeddings():
    """Old and new vectors are comparable, whatever the batch and the capacity."""
    base = embedded(-1, 4)
    for rows_at_once, capacity in ((1, 24), (64, 24), (4, 40)):
        again = embedded(-1, rows_at_once, capacity)
        np.testing.assert_allclose(again, base, rtol=1e-4, atol=1e-5)


def test_centred_vectors_are_cosines():
    """Inner products of centred vectors are cosines around the mean; the mean itself is zero."""
    vectors = np.random.default_rng(0).normal(2, 1, (9, WIDTH)).astype(np.float32)
    mean = vectors.mean(0)
    around = vectors.astype(np.float64) - mean
    lengths = np.linalg.norm(around, axis=1)
    ours = np.asarray(embed.centre(vectors, mean))
    expected = around @ around.T / np.outer(lengths, lengths)
    np.testing.assert_allclose(ours @ ours.T, expected, atol=1e-5)
    assert np.isfinite(embed.centre(mean[None], mean)).all()
