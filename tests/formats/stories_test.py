"""Real weights and real text: stories260K, where its files are at hand."""

import json
import math

import jax
import jax.numpy as jnp
import pytest

from isara_jax import config
from isara_jax.devices import mesh
from isara_jax.formats import weights
from isara_jax.method import train
from isara_jax.models import families
from isara_jax.sampler import decode, sampling
from isara_jax.text import packing, reading, stops, tokens
from tests import stories

pytestmark = pytest.mark.skipif(not stories.DATA.is_dir(), reason="stories260K is not here")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = stories.convert(tmp_path_factory.mktemp("stories260k"))
    model = families.build(weights.load_config(folder))
    devices = mesh.make()
    vocabulary = tokens.Vocabulary(reading.load(folder), 512, str(folder))
    golden = json.loads((stories.DATA / "golden_greedy.json").read_text())
    return model, weights.load(folder, model, devices), vocabulary, devices, golden


def test_greedy_text_is_the_published_one(loaded):
    """200 tokens from BOS, from another implementation of the same model."""
    model, params, vocabulary, devices, golden = loaded
    never = stops.stop_table(vocabulary.bytes, (vocabulary.eos,), ())
    sampler = decode.Sampler(model, 1, 1, 200, 1, devices)
    prompt = packing.Prompts(jnp.asarray([[1]]), jnp.asarray([1]))
    greedy = config.traced(sampling.SamplingParams, config.Sampling(temperature=0.0))
    got = jax.jit(lambda p: decode.generate(sampler, {"params": p}, prompt, jax.random.key(0),
                                            greedy, never))(params)  # fmt: skip
    n = int(got.lengths[0])
    assert n == 200
    expected = golden["tokens"][1:] if golden["tokens"][0] == 1 else golden["tokens"]
    assert got.tokens[0, :n].tolist() == expected[:200]
    assert vocabulary.decode(got.tokens[0, :n]).strip() == golden["text"].strip()


def test_likelihood_is_the_published_one(loaded):
    """Mean negative log-likelihood of the golden text."""
    model, params, _, _, golden = loaded
    ids = [1, *[t for t in golden["tokens"] if t != 1]]
    row = jnp.asarray([ids])
    n = jnp.asarray([len(ids)])
    batch = train.Sequences(row, n, jnp.asarray([1]), jnp.asarray([True]))
    losses, inside = train.answer_losses(model, {"params": params}, batch, len(ids) - 1)
    mean = float(jnp.sum(losses * inside) / jnp.sum(inside))
    assert math.isclose(mean, golden["mean_nll_of_greedy"], rel_tol=1e-4)


def test_text_survives(loaded):
    """SentencePiece with byte fallback: what is encoded decodes to itself."""
    _, _, vocabulary, _, _ = loaded
    texts = ("Once upon a time", "\nAnswer:", "\n\nQuestion:", "漢字 😀\t x", "Question:")
    for place in (tokens.IN_QUESTION, tokens.IN_ANSWER):
        for text, found in zip(texts, vocabulary.spellings(texts, place), strict=True):
            assert vocabulary.decode(found.bare) == f" {text}"
            assert vocabulary.decode(found.joined) == f" {text}{place.seam}"
