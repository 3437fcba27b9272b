"""Safety: a base model learns to decline harmful requests, specifically, and to help otherwise.

    ./launch/local.sh

runs this on the bundled tiny LLaMA. With one's own model or seeds:

    python -m isara_jax.main --config=configs/safety.py --workdir=runs/mine \
        --config.model.path=DIR --config.task.seeds=FILE.jsonl
"""

import ml_collections

from isara_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The run; any field can be changed by a flag, `--config.train.learning_rate=1e-4`."""
    c = config.default()
    c.task.name = "safety"
    c.task.n_seeds = 32
    c.samples_per_iteration = 384
    c.question.max_tokens = 32
    c.answer.max_tokens = 40
    return c
