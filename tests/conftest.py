"""Small models that several tests share."""

import os
import shutil

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Compiles three times as fast, to slower code: what small models need. Processes inherit it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax

if jax.__version_info__ < (0, 11):  # twice as fast again; a flag that XLA does not know ends it
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"

import hypothesis
import jax.numpy as jnp
import pytest

from isara_jax.files import storage
from isara_jax.formats import pretrained, weights
from isara_jax.models import families
from isara_jax.models.families import llama
from tests import words

# The suite tries the same few examples each time; `--hypothesis-profile=long` looks for others.
hypothesis.settings.register_profile(
    "suite", max_examples=40, derandomize=True, deadline=None, database=None
)
hypothesis.settings.register_profile("long", max_examples=2000, deadline=None)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session")
def random_model(tmp_path_factory):
    """A Hugging Face directory: two random layers under the bundled tokenizer."""
    return write_random_model(tmp_path_factory.mktemp("random_model"))


def write_random_model(folder):
    """Writes it."""
    folder.mkdir(exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pretrained.BUNDLED["tiny_llama"] / name, folder)
    network = llama.network(
        vocab_size=1536, width=32, hidden=64, n_layers=2, n_heads=4, n_kv_heads=2, head_size=8,
        max_length=512,
    )  # fmt: skip
    model = families.build(network)
    params = model.init(jax.random.key(1), jnp.zeros((1, 2), jnp.int32), method="everything")
    # Larger than at initialisation, so that the text depends on what is read.
    params = jax.tree.map(lambda x: x * 8 if x.ndim == 2 else x, params["params"])
    weights.save(folder, network, words.only_words(params))
    storage.write_json(folder / "config.json", families.to_hf(network))
    return folder
