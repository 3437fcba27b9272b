"""Updates that are not finite: held back as optax does, told, and never a result."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from isara_jax import config
from isara_jax.devices import mesh as mesh_lib
from isara_jax.method import train, trouble
from isara_jax.models import lora
from tests import tiny

ROWS, LENGTH, SPAN = 6, 12, 6
POISON = 7  # a token whose embedding is infinite
SETTINGS = config.Train(
    batch_size=1,
    learning_rate=2e-3,
    warmup=0.0,
    lora=config.Lora(rank=2, targets=("q", "o", "down")),
)


@pytest.fixture(scope="module")
def model():
    return tiny.ported(tiny.torch_llama(num_hidden_layers=1))


def sequences(poisoned=()):
    """Random ones, some of which begin with the poisoned token."""
    ids = np.random.default_rng(0).integers(10, 300, (ROWS, LENGTH)).astype(np.int32)
    ids[list(poisoned), 0] = POISON
    return train.Sequences(
        ids, np.full(ROWS, LENGTH, np.int32), np.full(ROWS, LENGTH - SPAN, np.int32),
        np.ones(ROWS, bool),
    )  # fmt: skip


def poison(params):
    """One row of the embedding is infinite."""
    table = params["embed"]["embedding"]
    return params | {"embed": params["embed"] | {"embedding": table.at[POISON].set(jnp.inf)}}


_fit = jax.jit(train.fit, static_argnames=("model", "train", "span", "rows", "mesh"))


def fit(model, params, start, data, settings=SETTINGS, rate=2e-3):
    how = config.traced(train.TrainParams, dataclasses.replace(settings, learning_rate=rate))
    settings = SETTINGS  # all that differs is traced
    return jax.device_get(
        _fit(
            model, params, start, jax.tree.map(jnp.asarray, data), settings, how,
            jnp.int32(2 * ROWS), jax.random.key(0), span=SPAN, rows=1, mesh=mesh_lib.make(),
        )
    )  # fmt: skip


def adapter(model):
    return lora.init(model.config, SETTINGS.lora, jax.random.key(0))


def by_optax(model, params, start, data, order):
    """The same steps by optax's `apply_if_finite` around the optimiser, one sequence a step."""
    tx = optax.apply_if_finite(train.optimizer(SETTINGS), max_consecutive_errors=99)
    state, found = tx.init(start), start

    def loss(trainable, row):
        variables = lora.variables(params, trainable, SETTINGS)
        losses, inside = train.answer_losses(model, variables, row, SPAN)
        return jnp.sum(losses * inside) / SPAN

    @jax.jit
    def step(found, state, row, rate):
        updates, state = tx.update(jax.grad(loss)(found, row), state, found)
        return jax.tree.map(lambda t, u: t - rate * u, found, updates), state

    for number, row in enumerate(order):
        rate = train.learning_rate(
            config.traced(train.TrainParams, SETTINGS), jnp.int32(number), jnp.int32(len(order))
        )
        found, state = step(found, state, jax.tree.map(lambda x, i=row: x[i : i + 1], data), rate)
    assert int(state.total_notfinite) > 0
    return found


def test_what_is_not_finite_is_held_back_as_by_optax(model):
    """The adapter after two passes, a third of whose batches are poisoned; and which they were."""
    network, params = model
    params, data = poison(params), sequences((1, 4))
    fitted = fit(network, params, adapter(network), data)
    found = fitted.trouble
    assert found.count == 4 and not found.dropped
    assert found.step.tolist()[4:] == [-1] * 4 and sorted(found.rows[:4, 0].tolist()) == [
        1,
        1,
        4,
        4,
    ]
    assert not np.isfinite(found.loss[:4]).any()
    order = []
    for number in range(2):
        noise = jax.random.uniform(jax.random.fold_in(jax.random.key(0), number), (ROWS,))
        order += np.argsort(noise).tolist()
    assert [order[step] for step in found.step[:4]] == found.rows[:4, 0].tolist()
    ours, theirs, start = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
        for tree in (
            fitted.trainable,
            by_optax(network, params, adapter(network), data, order),
            adapter(network),
        )
    )
    assert np.linalg.norm(ours - theirs) < 1e-4 * np.linalg.norm(theirs - start)
    clean = fit(network, params, adapter(network), sequences())
    assert clean.trouble.count == 0 and np.isfinite(fitted.last_loss)


def test_stop_ends_at_the_first_and_leaves_the_adapter(model):
    """No step after it is computed, and none before it counts."""
    network, params = model
    settings = dataclasses.replace(SETTINGS, on_divergence="stop")
    start = adapter(network)
    fitted = fit(network, poison(params), start, sequences((1, 4)), settings)
    assert fitted.trouble.count == 1 and fitted.trouble.dropped
    assert fitted.tokens == LENGTH * (1 + fitted.trouble.step[0])
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), fitted.trainable, start))


def test_infinite_weights_are_no_result(model):
    """A rate at which the first update overflows: every gradient was finite, the adapter is not."""
    network, params = model
    start = adapter(network)
    fitted = fit(network, params, start, sequences(), rate=3e38)
    assert fitted.trouble.dropped
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), fitted.trainable, start))


@pytest.mark.parametrize("before, after, lost", [
    (1.0, 0.5, False), (1.0, 3.9, False), (1.0, 4.3, True), (1.0, np.nan, True),
    (np.nan, np.nan, True), (0.2, np.inf, True), (9.0, 9.9, False), (9.0, 10.1, True),
])  # fmt: skip
def test_when_a_training_counts_as_lost(before, after, lost):
    """Half-way to ln V = 7.34 (V = 1,536), or a nat from above it."""
    assert bool(trouble.diverged(jnp.float32(before), jnp.float32(after), 1536)) is lost
