"""Truthfulness: a base model that repeats misconceptions learns to tell what is so.

    ./launch/local.sh --config=configs/truthfulness.py

runs this on the bundled tiny LLaMA, about 3 minutes on 2 cores
(`--config=configs/truthfulness.py:tiny_opt` for the tiny OPT). The held-out questions are about
facts that no seed states. Expect nearly all answered truly after the first iteration
(docs/claims.md).

On one's own model and seeds, with TruthfulQA's own file for MC1 and MC2:

    python -m isara_jax.main --config=configs/truthfulness.py:DIR --workdir=runs/mine \
        --config.task.seeds=FILE.jsonl --config.evaluation.choices=mc_task.json
"""

import ml_collections

from isara_jax import presets


def get_config(model: str = "tiny_llama") -> ml_collections.ConfigDict:
    """The run; any field can be changed by a flag, `--config.train.learning_rate=1e-4`.

    Args:
      model: a bundled model, a folder or its URL, or a published shape.
    """
    c = presets.of("truthfulness", model)
    if presets.is_bundled(model):
        # Two questions about facts differ in a word, which is what makes them two: only the same
        # question again is a duplicate.
        c.filters.rouge_l = 1.0
    return c
