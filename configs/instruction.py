"""Instructions: a base model that talks of something else learns to do what it is told.

    ./launch/local.sh --config=configs/instruction.py

runs this on the bundled tiny LLaMA, about 2 minutes on 2 cores
(`--config=configs/instruction.py:tiny_opt` for the tiny OPT). Expect more than nine of ten
instructions followed, by SFT on the seeds as well (docs/claims.md).

On one's own model and seeds, with AlpacaEval's instructions to answer:

    python -m isara_jax.main --config=configs/instruction.py:DIR --workdir=runs/mine \
        --config.task.seeds=FILE.jsonl --config.evaluation.prompts=alpaca_eval.json
"""

import ml_collections

from isara_jax import presets


def get_config(model: str = "tiny_llama") -> ml_collections.ConfigDict:
    """The run; any field can be changed by a flag, `--config.train.learning_rate=1e-4`.

    Args:
      model: a bundled model, a folder or its URL, or a published shape.
    """
    c = presets.of("instruction", model)
    if presets.is_bundled(model):
        # Its instructions are a few words long and differ in those that are their subject.
        c.filters.rouge_l = 1.0
    return c
