"""Safety: a base model learns to decline harmful requests, specifically, and to help otherwise.

    ./launch/local.sh

runs this on the bundled tiny LLaMA, `--config=configs/safety.py:tiny_opt` on the tiny OPT. On one's
own model and seeds, with what suits those (docs/real_model.md):

    python -m isara_jax.main --config=configs/safety.py:DIR --workdir=runs/mine \
        --config.task.seeds=FILE.jsonl

`--config=configs/safety.py:llama_7b` and other names of `isara_jax.models.shapes` stand for models
one does not have; what one would take is told by

    python -m isara_jax.plan --config=configs/safety.py:llama_7b --topology=v5e:4x4
"""

import ml_collections

from isara_jax import config
from isara_jax.formats import pretrained
from isara_jax.models import shapes


def get_config(model: str = "tiny_llama") -> ml_collections.ConfigDict:
    """The run; any field can be changed by a flag, `--config.train.learning_rate=1e-4`.

    Args:
      model: a bundled model, a folder or its URL, or a published shape.
    """
    c = config.default()
    c.model.path = model
    c.task.name = "safety"
    if model in pretrained.BUNDLED:
        _tiny(c)
    elif model in shapes.NETWORKS:
        _large(c)
    return c


def _tiny(c: ml_collections.ConfigDict) -> None:
    """A model of a million parameters, which is asked and taught in minutes."""
    c.samples_per_iteration = 384
    c.evaluation.baselines = config.BASELINES
    # With its own earlier answers as a model to follow, refusals spread to benign requests.
    c.answer.model = "base"
    # The rate best for SFT on the seeds, of 3e-4, 1e-3 and 3e-3; ISARA takes the same.
    c.train.learning_rate, c.train.epochs = 1e-3, 6


def _large(c: ml_collections.ConfigDict) -> None:
    """A model of billions of parameters: longer texts, more of them, a gentler rate."""
    c.samples_per_iteration, c.slots, c.task.n_seeds, c.answer.model = 1024, 128, 64, "base"
    c.train.learning_rate, c.train.epochs = 2e-4, 3
    for stage in (c.question, c.answer):
        stage.k, stage.prompt_tokens, stage.max_tokens = 8, 1024, 128
