"""Generation with a cache and refilled slots, against a plain loop over torch's logits."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import tiny
import torch

from isara_jax import config
from isara_jax.formats import adapters
from isara_jax.models import lora
from isara_jax.sampler import decode, sampling, scheduling
from isara_jax.text import packing, stops

N, P, L = 24, 12, 20
STOPS = ("\n\n", "ab")
ENDED = tuple(map(stops.Stop, STOPS))
SAMPLED = sampling.SamplingParams(jnp.float32(1.0), jnp.int32(0), jnp.float32(0.95))
GREEDY = sampling.SamplingParams(jnp.float32(0.0), jnp.int32(0), jnp.float32(1.0))
KEY = jax.random.key(11)
# Slots, prompts a refill, steps between two looks: lockstep with slots to spare, then refilling.
SCHEDULES = [(32, 32, 1), (6, 2, 1), (5, 3, 4), (1, 1, 1)]


@functools.cache
def models():
    """A torch model fond of special tokens, of ending, and of starting with a line break."""
    theirs = tiny.torch_llama(0, num_key_value_heads=2)
    spelled = tiny.vocabulary("byte_level").bytes
    silent = [i for i, text in enumerate(spelled) if not text]
    # Half a stop: where a slot's next request begins with it, the last one must be forgotten.
    breaks = [i for i, text in enumerate(spelled) if text[:1] == b"\n" != text[1:2]]
    with torch.no_grad():
        theirs.lm_head.weight[silent + breaks] *= 3
    return theirs, *tiny.ported(theirs), silent


@functools.cache
def prompts(seed=0):
    """Prompts of 1 to P tokens; behind their end stands what must not be read."""
    rng = np.random.default_rng(5)
    ids, lengths = rng.integers(3, 320, (N, P)), rng.integers(1, P + 1, N)
    noise = np.random.default_rng(seed).integers(0, 320, (N, P))
    ids = np.where(np.arange(P) < lengths[:, None], ids, noise)
    return packing.Prompts(jnp.asarray(ids, jnp.int32), jnp.asarray(lengths, jnp.int32))


generated = jax.jit(decode.generate, static_argnums=0)


@functools.cache
def table():
    spelled = tiny.vocabulary("byte_level").bytes
    return jax.device_put(stops.stop_table(spelled, (tiny.EOS,), ENDED))


def generate(schedule, params, asked=None, adapter=None, train=None):
    _, model, base, _ = models()
    slots, refill, steps_per_check = schedule
    sampler = decode.Sampler(model, slots, refill, L, steps_per_check, tiny.mesh())
    variables = lora.variables(base, adapter, train or config.Train())
    out = generated(sampler, variables, asked or prompts(), KEY, params, table())
    return jax.device_get(out)


def plain_loop(theirs, silent, params):
    """What generation promises: whole forward passes, one request at a time, stops by search."""
    vocabulary = tiny.vocabulary("byte_level")
    texts, finishes, scores, drawn = [], [], [], []
    ids, lengths = (np.asarray(x) for x in prompts())
    forbidden = [i for i in silent if i != tiny.EOS]
    for request in range(N):
        row, out, score, finish = ids[request, : lengths[request]].tolist(), [], 0.0, None
        while finish is None:
            logits = tiny.torch_logits(theirs, [row + out])[0, -1]
            logits[forbidden] = -np.inf
            keys = sampling.row_keys(KEY, jnp.array([request]), jnp.array([len(out)]))
            token = int(sampling_step(logits[None], keys, params)[0])
            score += torch.log_softmax(torch.tensor(logits).double(), 0)[token].item()
            out.append(token)
            text = vocabulary.spell(out)
            places = [text.find(stop.encode()) for stop in STOPS]
            if token == tiny.EOS:
                finish = stops.AT_EOS
            elif max(places) >= 0:
                ends = [p + len(s) if p >= 0 else 999 for p, s in zip(places, STOPS, strict=True)]
                finish = int(np.argmin(ends))
                text = text[: places[finish]]
            elif len(out) == L:
                finish = stops.UNFINISHED
        texts.append(text)
        finishes.append(finish)
        scores.append(score / len(out))
        drawn.append(out)
    return texts, finishes, scores, drawn


sampling_step = jax.jit(sampling.sample)


def drawn_of(out):
    return [row[:n].tolist() for row, n in zip(out.tokens, out.lengths, strict=True)]


def texts_of(out):
    vocabulary = tiny.vocabulary("byte_level")
    return [
        stops.text_before(vocabulary.bytes, row, finish, ENDED)
        for row, finish in zip(drawn_of(out), out.finish.tolist(), strict=True)
    ]


@functools.cache
def expected():
    theirs, _, _, silent = models()
    return plain_loop(theirs, silent, SAMPLED)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_generation_equals_a_plain_loop(schedule):
    """Cache, positions, stops, ends, scores and keys: as drawn one by one, whatever the slots."""
    out = generate(schedule, SAMPLED)
    texts, finishes, scores, drawn = expected()
    assert drawn_of(out) == drawn
    assert texts_of(out) == texts
    assert out.finish.tolist() == finishes
    np.testing.assert_allclose(out.score, scores, rtol=1e-4)
    assert int(out.drawn) == sum(map(len, drawn))
    # Each way of ending occurs, or it would go untested.
    assert set(finishes) == {stops.UNFINISHED, stops.AT_EOS, 0, 1}


@pytest.mark.parametrize("schedule", SCHEDULES[1:])
def test_schedule_does_not_show(schedule):
    """Slots, refills and looks change the work, not one token: token ids, not only the text."""
    ours, lockstep = generate(schedule, SAMPLED), generate(SCHEDULES[0], SAMPLED)
    np.testing.assert_array_equal(ours.tokens, lockstep.tokens)
    np.testing.assert_array_equal(ours.lengths, lockstep.lengths)
    np.testing.assert_array_equal(ours.finish, lockstep.finish)
    np.testing.assert_allclose(ours.score, lockstep.score, rtol=1e-4)


def test_a_cache_read_in_part_gives_the_same_tokens(monkeypatch):
    """Steps that read a third or two thirds of the cache read all there is, and no step is lost."""
    monkeypatch.setattr(scheduling, "read_lengths", lambda length, *_, **__: (11, 22, length))
    schedule = (7, 2, 3)  # no other test's, so that it is compiled anew
    ours, whole = generate(schedule, SAMPLED), generate(SCHEDULES[0], SAMPLED)
    np.testing.assert_array_equal(ours.tokens, whole.tokens)
    np.testing.assert_array_equal(ours.lengths, whole.lengths)
    np.testing.assert_allclose(ours.score, whole.score, rtol=1e-4)


def test_parts_of_a_cache_to_read():
    """A half, three quarters, all; on a CPU, and of short caches, only all."""
    for platform, length, expected in (
        ("gpu", 1128, (564, 846, 1128)), ("tpu", 511, (511,)), ("cpu", 1128, (1128,)),
    ):  # fmt: skip
        devices = np.array([types.SimpleNamespace(platform=platform)])
        mesh = types.SimpleNamespace(devices=devices)
        assert scheduling.read_lengths(length, mesh, grouped=False) == expected
        assert scheduling.read_lengths(length, mesh, grouped=True) == (length,)


def test_order_of_requests_does_not_show():
    """Greedy requests in another order give the same answers in that order."""
    order = np.random.default_rng(2).permutation(N)
    moved = packing.Prompts(*(x[order] for x in prompts()))
    ours, base = generate(SCHEDULES[1], GREEDY, moved), generate(SCHEDULES[1], GREEDY)
    np.testing.assert_array_equal(ours.tokens, base.tokens[order])
    np.testing.assert_array_equal(ours.finish, base.finish[order])
    np.testing.assert_allclose(ours.score, base.score[order], rtol=1e-4)


def test_padding_is_not_read():
    """What stands behind a prompt's end changes nothing."""
    ours = generate(SCHEDULES[2], SAMPLED, prompts(seed=9))
    base = generate(SCHEDULES[2], SAMPLED)
    np.testing.assert_array_equal(ours.tokens, base.tokens)


def test_output_rows_are_clean():
    """Rows hold EOS at most as their end, no other special token, nothing behind their length."""
    _, _, _, silent = models()
    for params in (SAMPLED, GREEDY):
        out = generate(SCHEDULES[0], params)
        inside = np.arange(L) < out.lengths[:, None]
        at_eos = out.finish == stops.AT_EOS
        ends = at_eos[:, None] & (np.arange(L) == out.lengths[:, None] - 1)
        assert (out.tokens[ends] == tiny.EOS).all() and ends.sum() == at_eos.sum()
        assert not np.isin(out.tokens[inside & ~ends], silent).any()
        assert not out.tokens[~inside].any()
        assert (out.lengths[out.finish == stops.UNFINISHED] == L).all()
    # The model itself would draw special tokens, as any model may.
    logits = tiny.torch_logits(models()[0], np.asarray(prompts().tokens))
    assert np.isin(logits.argmax(-1), [i for i in silent if i != tiny.EOS]).mean() > 0.05


def test_adapter_reaches_the_sampler(tmp_path):
    """Generation with an adapter draws what PEFT's model draws, and not what the base draws."""
    _, model, _, silent = models()
    settings = config.Lora(rank=4, alpha=8.0)
    rng = np.random.default_rng(0)
    adapter = jax.tree.map(
        lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32),
        lora.init(model.config, settings, jax.random.key(0)),
    )
    theirs = tiny.torch_llama(0, num_key_value_heads=2)
    theirs.load_state_dict(models()[0].state_dict())
    theirs.config.save_pretrained(tmp_path)
    adapters.save(tmp_path, model.config, jax.device_get(adapter), settings, str(tmp_path))
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    train = config.Train(lora=settings)
    out = generate(SCHEDULES[1], GREEDY, adapter=adapter, train=train)
    texts, finishes, scores, _ = plain_loop(adapted, silent, GREEDY)
    assert texts_of(out) == texts
    assert out.finish.tolist() == finishes
    np.testing.assert_allclose(out.score, scores, rtol=1e-4)
    base = texts_of(generate(SCHEDULES[1], GREEDY))
    assert sum(a != b for a, b in zip(base, texts, strict=True)) > N // 2
