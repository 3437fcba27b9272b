"""Safety: a base model learns to decline harmful requests, specifically, and to help otherwise.

    ./launch/local.sh

runs this on the bundled tiny LLaMA, about 3 minutes on 2 cores
(`--config=configs/safety.py:tiny_opt` for the tiny OPT). Expect harmless requests refused after the
first iteration, and more than nine of ten held-out requests, harmful and benign, answered as they
should be after the third (docs/claims.md).

On one's own model and seeds, with what suits those (docs/real_model.md):

    python -m isara_jax.main --config=configs/safety.py:DIR --workdir=runs/mine \
        --config.task.seeds=FILE.jsonl --config.evaluation.prompts=PROMPTS.csv

`--config=configs/safety.py:llama_7b` and other names of `isara_jax.models.shapes` stand for models
one does not have; what one would take is told by

    python -m isara_jax.plan --config=configs/safety.py:llama_7b --topology=v5e:4x4
"""

import ml_collections

from isara_jax import presets


def get_config(model: str = "tiny_llama") -> ml_collections.ConfigDict:
    """The run; any field can be changed by a flag, `--config.train.learning_rate=1e-4`.

    Args:
      model: a bundled model, a folder or its URL, or a published shape.
    """
    return presets.of("safety", model)
