"""Fresh adapters and training, of adapters and of whole models, against PEFT and torch."""

import dataclasses
import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.numpy
import scipy.stats
import tiny
import torch

from isara_jax import config
from isara_jax.devices import mesh as mesh_lib
from isara_jax.formats import adapters, weights
from isara_jax.method import train
from isara_jax.models import families, lora
from isara_jax.text import packing

IDS = np.random.default_rng(0).integers(3, tiny.SIZES["vocab_size"], (2, 20))
NETWORK = {"num_key_value_heads": 2, "attention_bias": True}
# Trained without dropout, as here.
NETWORKS = {
    "llama": ("llama", NETWORK),
    "llama_tied": ("llama", NETWORK | {"tie_word_embeddings": True}),
    "opt": ("opt", {"dropout": 0.0}),
    "opt_350m": (
        "opt", {"dropout": 0.0, "do_layer_norm_before": False, "word_embed_proj_dim": 16},
    ),
}  # fmt: skip
# With scales at which gradients are large enough to be clipped.
OTHERS = {
    "granite": {"attention_multiplier": 0.3, "residual_multiplier": 0.8},
    "gemma2": {"query_pre_attn_scalar": 8},
}
NETWORKS |= {name: (name, OTHERS.get(name, {})) for name in tiny.TORCH if name not in NETWORKS}


def random_adapter(network, settings, seed=0):
    """An adapter whose b is not zero, as after some training."""
    rng = np.random.default_rng(seed)
    fresh = lora.init(network, settings, jax.random.key(seed))
    return jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32), fresh)


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def logits(model, params, adapter, settings):
    variables = lora.variables(params, adapter, config.Train(lora=settings))
    return model.apply(variables, jnp.asarray(IDS), method="everything")


def test_fresh_adapter_changes_nothing():
    """Training starts from the base model: b is zero, and so is the adapter's effect."""
    model, params = tiny.ported(tiny.torch_llama(**NETWORK))
    settings = config.Lora(rank=4)
    fresh = lora.init(model.config, settings, jax.random.key(0))
    changed = logits(model, params, fresh, settings)
    np.testing.assert_array_equal(changed, logits(model, params, None, settings))


def test_fresh_adapter_is_drawn_as_in_peft():
    """Rows of a follow PEFT's Kaiming uniform: same bound and distribution for every layer."""
    theirs = tiny.torch_llama(num_key_value_heads=2)
    network = families.from_hf(theirs.config.to_dict(), "config")
    settings = config.Lora(rank=64)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = peft.get_peft_model(theirs, peft.LoraConfig(r=64, target_modules=names))
    reference = peft.get_peft_model_state_dict(adapted)
    ours = weights.flatten(jax.device_get(lora.init(network, settings, jax.random.key(1))))
    drawn = {path: value for path, value in ours.items() if path.endswith("/a")}
    assert len(drawn) * 2 == len(ours) == len(reference)
    for path, value in drawn.items():
        name = weights.find(network, path.removesuffix("a") + "kernel").name.removesuffix(".weight")
        expected = reference[f"base_model.model.{name}.lora_A.weight"].numpy().T
        assert value.shape == expected.shape
        assert np.abs(value).max() == pytest.approx(np.abs(expected).max(), rel=5e-3)
        assert scipy.stats.ks_2samp(value.ravel(), expected.ravel()).pvalue > 1e-4
    values = [value.ravel()[:100].tolist() for value in drawn.values()]
    assert len({tuple(v) for v in values}) == len(values)  # no two layers share their draw


# --- training ----------------------------------------------------------------------------------

SPAN, STEPS = 8, 3
SETTINGS = config.Train(
    batch_size=5, learning_rate=2e-3, warmup=0.5, weight_decay=0.1, clip_norm=0.2,
    lora=config.Lora(rank=4, alpha=8.0),
)  # fmt: skip


def some_sequences():
    """Six sequences of which four are valid: each batch of five is those four, in some order."""
    rng = np.random.default_rng(5)
    ids = rng.integers(3, tiny.SIZES["vocab_size"], (6, 24)).astype(np.int32)
    lengths = np.array([24, 13, 9, 17, 20, 4], np.int32)
    begin = np.array([17, 9, 1, 16, 14, 2], np.int32)
    return train.Sequences(ids, lengths, begin, np.array([1, 1, 0, 1, 1, 0], bool))


def rate(step, settings, total):
    """Warm-up over a share of the steps, then cosine to zero, by hand."""
    warm = max(settings.warmup * total, 1)
    if step < warm:
        return settings.learning_rate * min(1, (step + 1) / warm)
    return settings.learning_rate * (1 + np.cos(np.pi * (step - warm) / (total - warm))) / 2


def torch_fit(model, sequences, settings, total):
    """Steps of AdamW with clipping, written with torch; returns the losses."""
    ids = torch.tensor(sequences.ids[sequences.valid], dtype=torch.long)
    place = torch.arange(ids.shape[1])
    begin = torch.tensor(sequences.begin[sequences.valid])[:, None]
    length = torch.tensor(sequences.lengths[sequences.valid])[:, None]
    labels = torch.where((place >= begin) & (place < length), ids, -100)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=1.0, betas=(0.9, 0.95), weight_decay=settings.weight_decay
    )
    losses = []
    for step in range(total):
        optimizer.param_groups[0]["lr"] = rate(step, settings, total)
        found = model(ids).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(found, labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, settings.clip_norm)
        assert norm > settings.clip_norm  # or clipping would go untested
        optimizer.step()
        losses.append(loss.item())
    return losses


def one_stream(sequences=None):
    """All valid sequences in one stream of six rows."""
    sequences = sequences or some_sequences()
    lengths = np.where(sequences.valid, sequences.lengths, 0)
    packed, _ = packing.streams(sequences.ids, lengths, sequences.begin, rows=6, span=SPAN)
    in_rows = {name: getattr(packed, name).reshape(6, -1) for name in ("ids", "positions")}
    return packed._replace(**in_rows)


def fit(model, params, start, settings, steps=STEPS, sequences=None, rows=3):
    sequences = jax.tree.map(jnp.asarray, sequences or some_sequences())
    fitted = jax.jit(train.fit, static_argnames=("model", "train", "span", "rows", "mesh"))
    return fitted(
        model, params, start, sequences, settings, config.traced(train.TrainParams, settings),
        jnp.int32(steps), jax.random.key(0), span=SPAN, rows=rows,
        mesh=mesh_lib.make(),
    )  # fmt: skip


def distance(ours, theirs, start):
    """‖Δours − Δtheirs‖ / ‖Δtheirs‖ over all tensors together."""
    assert set(ours) == set(theirs) == set(start)
    names = sorted(ours)
    ours, theirs, start = (
        np.concatenate([np.asarray(d[n], np.float64).ravel() for n in names])
        for d in (ours, theirs, start)
    )
    assert np.linalg.norm(theirs - start) > 0
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs - start)


@pytest.mark.parametrize("name", tiny.TORCH)
def test_lora_training_equals_peft(name, tmp_path, record_property):
    """Loss, masks, gradients, clipping, AdamW and schedule: three updates as torch and PEFT."""
    family, changed = NETWORKS[name]
    theirs = tiny.TORCH[family](**changed)
    model, params = tiny.ported(theirs)
    start, base = random_adapter(model.config, SETTINGS.lora), str(tmp_path)
    theirs.config.save_pretrained(base)
    adapters.save(tmp_path / "start", model.config, jax.device_get(start), SETTINGS.lora, base)
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "start", is_trainable=True)
    before = {n: v.clone() for n, v in peft.get_peft_model_state_dict(adapted).items()}
    losses = torch_fit(adapted, some_sequences(), SETTINGS, STEPS)

    fitted = fit(model, params, start, SETTINGS)
    adapters.save(
        tmp_path / "end", model.config, jax.device_get(fitted.trainable), SETTINGS.lora, base
    )
    ours = safetensors.numpy.load_file(tmp_path / "end" / "adapter_model.safetensors")
    found = distance(ours, peft.get_peft_model_state_dict(adapted), before)
    record_property("distance", float(found))
    assert found < 1e-4
    assert float(fitted.first_loss) == pytest.approx(losses[0], rel=1e-4)
    assert float(fitted.last_loss) == pytest.approx(losses[-1], rel=1e-4)
    assert int(fitted.steps) == STEPS
    assert int(fitted.tokens) == STEPS * (24 + 13 + 17 + 20)  # valid rows, no padding


@pytest.mark.parametrize("name", ["llama", "llama_tied", "opt_350m"])
def test_full_training_equals_torch(name, tmp_path, record_property):
    """Full fine-tuning moves every weight, shared ones too, as torch does in three updates."""
    settings = dataclasses.replace(SETTINGS, trainable="full")
    family, changed = NETWORKS[name]
    theirs = tiny.TORCH[family](**changed)
    model, params = tiny.ported(theirs)
    before = {n: v.detach().clone() for n, v in theirs.named_parameters()}
    torch_fit(theirs, some_sequences(), settings, STEPS)

    fitted = fit(model, params, params, settings)
    weights.save(tmp_path, model.config, fitted.trainable)
    ours = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    after = {n: v.detach() for n, v in theirs.named_parameters()}
    assert all((after[n] != before[n]).any() for n in after)
    # Without RoPE a key's bias adds the same to all scores of a query: no loss depends on it, its
    # gradient is rounding noise, and AdamW makes steps of that. Ours stay as small as steps are.
    silent = [n for n in after if family == "opt" and n.endswith("k_proj.bias")]
    for bias in silent:
        step = np.abs(ours.pop(bias) - before.pop(bias).numpy()).max()
        assert step < STEPS * settings.learning_rate
        del after[bias]
    found = distance(ours, after, before)
    record_property("distance", float(found))
    assert found < 1e-4


def test_updates_do_not_depend_on_the_packing():
    """A sequence a stream, or several, cut by the ends of rows: the gradient is the batch's.

    Also where a window is shorter than a sequence.
    """
    model, params = tiny.ported(tiny.TORCH["gemma2"](sliding_window=7))
    start = random_adapter(model.config, SETTINGS.lora)
    alone, *packed = (
        weights.flatten(fit(model, params, start, SETTINGS, rows=rows).trainable)
        for rows in (1, 2, 5)
    )
    for other in packed:
        assert distance(other, alone, weights.flatten(start)) < 1e-4


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_a_large_vocabulary_is_projected_in_portions(trainable, monkeypatch):
    """Where logits would not fit at once, loss and updates stay those of one projection."""
    settings = dataclasses.replace(SETTINGS, trainable=trainable)
    model, params = tiny.ported(tiny.torch_llama(**NETWORK))
    start = params if trainable == "full" else random_adapter(model.config, settings.lora)
    whole = fit(model, params, start, settings)
    monkeypatch.setattr(train, "LOGITS_BYTES", 18 * 4 * 326)  # of 18 of a stream's 48
    jax.clear_caches()
    portions = fit(model, params, start, settings)
    assert float(portions.first_loss) == pytest.approx(float(whole.first_loss), rel=1e-6)
    changed = (weights.flatten(x.trainable) for x in (portions, whole))
    assert distance(*changed, weights.flatten(start)) < 1e-5
    step = lambda p: train.stream_loss(model, {"params": p}, one_stream())  # noqa: E731
    program = str(jax.make_jaxpr(step)(params))
    assert "f32[1,18,326]" in program and f"f32[1,{6 * SPAN},326]" not in program


def test_computing_blocks_again_changes_nothing():
    """With remat the same updates, and the blocks' inner values are kept no longer."""
    model, params = tiny.ported(tiny.torch_llama())
    start = random_adapter(model.config, SETTINGS.lora)
    again = model.clone(remat=True)
    ours, theirs = (fit(m, params, start, SETTINGS).trainable for m in (again, model))
    assert distance(*map(weights.flatten, (ours, theirs, start))) < 1e-5
    hidden = model.config.hidden

    def kept(model):
        variables = lora.variables(params, start, SETTINGS)
        step = lambda v: train.stream_loss(model, v, one_stream())  # noqa: E731
        _, backward = jax.vjp(step, variables)
        return sum(x.shape[-1:] == (hidden,) and x.ndim == 3 for x in jax.tree.leaves(backward))

    assert kept(again) == 0 < kept(model)


def test_streams_fit_the_memory_there_is():
    """Large streams where there is room, smaller ones where not, recomputation at the last."""
    model = families.build(families.from_hf(tiny.torch_llama().config.to_dict(), "config"))
    kept = 2 * (10 * 32 + 5 * 48) * 4  # bytes a token: two blocks
    settings = dataclasses.replace(SETTINGS, batch_size=900)
    for tokens, expected in (
        (9000, (409, False)),  # 4,096 tokens, rows of 10
        (2001, (200, False)),
        (1025, (102, False)),
        (1000, (409, True)),
    ):
        free = 2 * kept * tokens
        devices = types.SimpleNamespace(
            devices=np.array([types.SimpleNamespace(platform="gpu")]),
            shape={"data": 1, "fsdp": 1, "model": 1},
        )
        assert train.plan(model, settings, 10, devices, free) == expected
        for policy in ("none", "blocks"):
            asked = dataclasses.replace(settings, remat=policy)
            assert train.plan(model, asked, 10, devices, free).remat is (policy == "blocks")
    cpu = train.plan(model, settings, 10, mesh_lib.make(), math.inf)
    assert cpu == (train.CPU_TOKENS // 10, False)
    few = dataclasses.replace(SETTINGS, batch_size=4)
    assert train.plan(model, few, 10, mesh_lib.make(), math.inf).rows == 4  # no more than needed


def test_no_steps_change_nothing():
    """Where nothing was accepted, no step is taken and the adapter stays as it was."""
    model, params = tiny.ported(tiny.torch_llama(**NETWORK))
    none = some_sequences()._replace(valid=np.zeros(6, bool))
    start = random_adapter(model.config, SETTINGS.lora)
    steps = train.steps_for(none, SETTINGS, config.traced(train.TrainParams, SETTINGS))
    fitted = fit(model, params, start, SETTINGS, int(steps), none)
    assert int(steps) == int(fitted.tokens) == 0
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), fitted.trainable, start))


@pytest.mark.parametrize(("valid", "epochs", "expected"), [(11, 3, 9), (10, 3, 6), (1, 2, 2)])
def test_steps_cover_the_valid_sequences(valid, epochs, expected):
    """An epoch is as many batches as hold every valid sequence, the last one perhaps part empty."""
    sequences = train.Sequences(None, None, None, jnp.arange(40) < valid)
    params = config.traced(train.TrainParams, dataclasses.replace(SETTINGS, epochs=epochs))
    assert int(train.steps_for(sequences, SETTINGS, params)) == expected


def test_every_epoch_reads_each_sequence_once():
    """Shuffled passes: with a rate of zero, the losses of an epoch average to that of the whole."""
    model, params = tiny.ported(tiny.torch_llama())
    sequences = some_sequences()._replace(
        begin=np.array([18, 7, 3, 11, 14, 2], np.int32),  # as many answer tokens in each: 6
        valid=np.ones(6, bool),
    )
    sequences = sequences._replace(lengths=sequences.begin + 6)
    settings = dataclasses.replace(SETTINGS, batch_size=2, learning_rate=0.0)
    start = random_adapter(model.config, settings.lora)
    variables = lora.variables(params, start, settings)
    stream = one_stream(sequences)
    whole = jax.jit(train.stream_loss, static_argnums=0)(model, variables, stream)
    whole = float(whole) / int(stream.inside.sum())
    # Ten passes of three steps: the first tenth of the steps, and the last, are whole passes.
    fitted = fit(model, params, start, settings, 30, sequences)
    assert float(fitted.first_loss) == pytest.approx(whole, rel=1e-5)
    assert float(fitted.last_loss) == pytest.approx(whole, rel=1e-5)
    assert int(fitted.tokens) == 10 * sequences.lengths.sum()


@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.25, 0.9])
def test_schedule_is_the_formula(warmup):
    """Warm-up and cosine as by hand for every number of steps, and never above the peak."""
    settings = dataclasses.replace(SETTINGS, warmup=warmup)
    params, schedule = config.traced(train.TrainParams, settings), jax.jit(train.learning_rate)
    for total in (1, 2, 3, 10, 34, 50, 101):
        steps = jnp.arange(total)
        found = np.asarray(jax.vmap(schedule, (None, 0, None))(params, steps, jnp.int32(total)))
        expected = [rate(step, settings, total) for step in range(total)]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)
        assert 0 < found.max() <= settings.learning_rate * (1 + 1e-6)
