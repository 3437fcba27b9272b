"""What `configs/*.py` share: settings that suit the size of a model, whatever the domain."""

import ml_collections

from isara_jax import config
from isara_jax.formats import pretrained
from isara_jax.models import shapes


def of(domain: str, model: str) -> ml_collections.ConfigDict:
    """A run's configuration, to be changed by the domain's file and by flags.

    Args:
      domain: a bundled domain, or what one's own seeds are about.
      model: a bundled model, a folder or its URL, or a published shape.
    """
    c = config.default()
    c.model.path, c.task.name = model, domain
    if is_bundled(model):
        _tiny(c)
        return c
    c.slots = 0  # as many as fit
    if model in shapes.NETWORKS:
        _large(c)
    return c


def is_bundled(model: str) -> bool:
    """Whether `model` is one of the bundled ones, whose settings were chosen on their world."""
    return model in pretrained.BUNDLED


def _tiny(c: ml_collections.ConfigDict) -> None:
    """A model of a million parameters, which is asked and taught in minutes."""
    c.samples_per_iteration, c.evaluation.baselines = 384, config.BASELINES
    # The rate best for SFT on the seeds, of 3e-4, 1e-3 and 3e-3; ISARA takes the same.
    c.train.learning_rate, c.train.epochs = 1e-3, 6


def _large(c: ml_collections.ConfigDict) -> None:
    """A model of billions of parameters: longer texts, more of them, a gentler rate."""
    c.samples_per_iteration, c.task.n_seeds = 1024, 64
    c.train.learning_rate, c.train.epochs = 2e-4, 3
    for stage in (c.question, c.answer):
        stage.k, stage.prompt_tokens, stage.max_tokens = 8, 1024, 128
