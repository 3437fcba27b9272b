"""The families and their heads, against `transformers` in torch, one config field at a time."""

import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
import transformers
import variants
from transformers.activations import ACT2FN

from isara_jax.formats import weights
from isara_jax.models import activations, attention, families
from isara_jax.sampler import decode, sampling
from isara_jax.text import packing, stops

TOLERANCE = 1e-4
VARIANTS = [(family, name) for family, of in variants.BY_FAMILY.items() for name in of]


def variant(family, name):
    """A variant's fields, and those without what makes it one (None where it is the default)."""
    return variants.BY_FAMILY[family][name]


# Four prompts of unequal length, in rows of random tokens that nobody may read.
LENGTHS, CAPACITY, NEW = np.array([1, 12, 5, 8]), 12, 64


class Texts(NamedTuple):
    """Prompts and what HF says to them: ids `[4, 76]`, in each row the prompt and 64 tokens."""

    ids: np.ndarray
    generated: np.ndarray
    logits: list  # HF's, a row each, without padding


def greedy_texts(theirs, suppressed=None):
    """Greedy texts of `transformers`, in one left-padded batch."""
    ids = np.random.default_rng(1).integers(3, theirs.config.vocab_size, (4, CAPACITY + NEW))
    prompts = torch.full((4, CAPACITY), tiny.PAD)
    for row, length in enumerate(LENGTHS):
        prompts[row, CAPACITY - length :] = torch.tensor(ids[row, :length])
    visible = torch.arange(CAPACITY) >= torch.tensor(CAPACITY - LENGTHS)[:, None]
    out = theirs.generate(
        prompts, attention_mask=visible.long(), max_new_tokens=NEW, do_sample=False,
        pad_token_id=tiny.PAD, eos_token_id=None, suppress_tokens=suppressed,
    )  # fmt: skip
    generated = out[:, CAPACITY:].numpy()
    for row, length in enumerate(LENGTHS):
        ids[row, length : length + NEW] = generated[row]
    logits = [
        tiny.torch_logits(theirs, ids[row : row + 1, : length + NEW])[0]
        for row, length in enumerate(LENGTHS)
    ]
    # A loop of one token would hide a cache that is not read.
    assert np.mean([len(set(row)) for row in generated.tolist()]) > 5
    return Texts(ids, generated, logits)


@functools.partial(jax.jit, static_argnums=0)
def read_both_ways(model, params, ids):
    """Logits of whole rows `[B, T, V]`, and of their last 64 tokens by the cache `[64, B, V]`."""
    variables, c = {"params": params}, model.config
    hidden, _ = model.apply(variables, ids)
    whole = model.apply(variables, hidden, method="logits")

    # Behind a prompt's end stands what must be overwritten before it is read.
    lengths, rows = jnp.asarray(LENGTHS), len(LENGTHS)
    prompts = jnp.where(jnp.arange(CAPACITY) < lengths[:, None], ids[:, :CAPACITY], 5)
    _, chunks = model.apply(variables, prompts)

    def filled(layer, chunk):
        size = c.rows(layer, CAPACITY + NEW)
        half = attention.empty(model.how, size, rows, c.n_kv_heads, c.head_size, jnp.float32)
        cache = jax.tree.map(lambda x: jnp.full_like(x, 1e3), (half, half))
        return attention.insert(model.how, cache, chunk, jnp.arange(rows), lengths)

    cache = tuple(filled(i, chunk) for i, chunk in enumerate(chunks))

    def step(cache, index):
        # The prompt's last token is read again, as decode does.
        positions = jnp.asarray(LENGTHS)[:, None] - 1 + index
        tokens = jnp.take_along_axis(ids, positions, axis=1)
        hidden, cache = model.apply(variables, tokens, positions, cache)
        return cache, model.apply(variables, hidden[:, 0], method="logits")

    return whole, jax.lax.scan(step, cache, jnp.arange(NEW))[1]


class Parity(NamedTuple):
    """Largest differences from HF's logits as shares of their scale, and our greedy tokens."""

    prefill: float
    cached: float
    generated: np.ndarray


def compare(model, params, texts):
    whole, cached = (np.asarray(x) for x in read_both_ways(model, params, jnp.asarray(texts.ids)))
    prefill, decoded = [], []
    for row, (length, expected) in enumerate(zip(LENGTHS, texts.logits, strict=True)):
        prefill.append(tiny.difference(whole[row, : length + NEW], expected))
        decoded.append(tiny.difference(cached[:, row], expected[length - 1 : -1]))
    return Parity(max(prefill), max(decoded), cached.argmax(-1).T)


def without(theirs, forgotten):
    """HF's network with other fields and, where name and shape agree, the same weights."""
    fields = theirs.config.to_dict() | forgotten
    other = type(theirs)(type(theirs.config)(**fields, attn_implementation="eager")).eval()
    other, given = tiny.randomise(other), dict(theirs.named_parameters())
    with torch.no_grad():
        for name, value in other.named_parameters():
            if name in given and given[name].shape == value.shape:
                value.copy_(given[name])
    return other


@pytest.mark.parametrize(("family", "name"), VARIANTS)
def test_variant_equals_transformers(family, name, record_property):
    """Each field of a config is honoured: logits whole and by the cache, and 64 greedy tokens."""
    changed, forgotten = variant(family, name)
    theirs = tiny.TORCH[family](**changed)
    model, params = tiny.ported(theirs)
    texts = greedy_texts(theirs)
    found = compare(model, params, texts)
    record_property("prefill", float(found.prefill))
    record_property("cached", float(found.cached))
    assert found.prefill < TOLERANCE
    assert found.cached < TOLERANCE
    # Told HF's tokens so far, we say HF's next one each time: so we say the same text alone.
    np.testing.assert_array_equal(found.generated, texts.generated)
    if forgotten:
        row = texts.ids[1:2, : LENGTHS[1] + NEW] % model.config.vocab_size
        wrong = tiny.torch_logits(without(theirs, forgotten), row)
        assert tiny.difference(wrong, texts.logits[1][None]) > 100 * TOLERANCE
    written = families.to_hf(model.config)
    assert families.from_hf(json.loads(json.dumps(written)), "written") == model.config


@functools.partial(jax.jit, static_argnames="sampler")
def generated(sampler, params, prompts, table):
    greedy = sampling.SamplingParams(jnp.float32(0), jnp.int32(0), jnp.float32(1))
    return decode.generate(sampler, {"params": params}, prompts, jax.random.key(0), greedy, table)


@pytest.mark.parametrize(
    ("family", "name"),
    [("llama", "like_3.2"), ("opt", "like_350m"), ("gemma3_text", "six_layers")],
)
def test_sampler_draws_the_tokens_of_transformers(family, name):
    """The sampler's prefill, refills, cache and positions: 64 greedy tokens as HF draws them."""
    theirs = tiny.TORCH[family](3, **variant(family, name)[0])
    model, params = tiny.ported(theirs)
    vocabulary = tiny.vocabulary("byte_level")
    silent = [i for i, spelled in enumerate(vocabulary.bytes) if not spelled]
    texts = greedy_texts(theirs, silent)
    prompts = packing.Prompts(
        jnp.asarray(texts.ids[:, :CAPACITY], jnp.int32), jnp.asarray(LENGTHS, jnp.int32)
    )
    table = stops.stop_table(vocabulary.bytes, (), (stops.Stop("never drawn, this one"),))
    # Two slots for four prompts: the second pair is begun in slots that have been used.
    sampler = decode.Sampler(model, 2, 2, NEW, 1, mesh=tiny.mesh())
    ours = generated(sampler, params, prompts, table)
    assert (np.asarray(ours.lengths) == NEW).all()
    np.testing.assert_array_equal(np.asarray(ours.tokens), texts.generated)


# --- parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", activations.ACTIVATIONS)
def test_activations_equal_transformers(name):
    """Each activation is the function that HF means by its name."""
    x = np.linspace(-6, 6, 1001, dtype=np.float32)
    expected = ACT2FN[name](torch.tensor(x)).numpy()
    np.testing.assert_allclose(activations.ACTIVATIONS[name](jnp.asarray(x)), expected, atol=2e-6)


def rotary(name, **changed):
    """HF's rotary embedding of a variant, and our frequencies."""
    theirs = tiny.torch_llama(**variant("llama", name)[0] | changed)
    network = families.from_hf(theirs.config.to_dict(), name)
    return theirs.model.rotary_emb, network.kinds[0].rope.turn(network.head_size).frequencies


def test_llama3_rope_has_waves_of_each_kind():
    """The variant above keeps, blends and divides waves: none of the three goes untested."""
    theirs, ours = rotary("llama3_rope")
    ratio = theirs.inv_freq.numpy() / rotary("plain")[1]
    np.testing.assert_allclose(ours, theirs.inv_freq.numpy(), rtol=1e-6)
    assert ratio[0] == 1
    assert 1 / 8 < ratio[1] < 1
    np.testing.assert_allclose(ratio[2:], 1 / 8, rtol=1e-6)


def test_dynamic_rope_is_the_default_up_to_its_length():
    """Why texts end at max_position_embeddings: one token more, and HF turns everything anew."""
    theirs, ours = rotary("dynamic_rope", max_position_embeddings=64)
    x = torch.zeros(1)
    theirs(x, torch.arange(64)[None])
    np.testing.assert_allclose(ours, theirs.inv_freq.numpy(), rtol=1e-6)
    theirs(x, torch.arange(65)[None])
    assert tiny.difference(theirs.inv_freq.numpy()[1:], ours[1:]) > 1e-3


OLDER = {
    "theta": ("theta", {"rope_theta": 500.0, "rope_scaling": None}),
    "linear": ("linear_rope", {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4}}),
    "llama3": (
        "llama3_rope",
        {"rope_theta": 1e4, "rope_scaling": variants.LLAMA3 | {"type": "llama3"}},
    ),
}


@pytest.mark.parametrize("case", OLDER)
def test_rope_of_older_configs(case):
    """Configs of transformers 4 keep RoPE's fields at the top level: they count there too."""
    name, fields = OLDER[case]
    theirs = tiny.torch_llama(**variant("llama", name)[0])
    newer = theirs.config.to_dict()
    older = {k: v for k, v in newer.items() if k not in ("rope_parameters", "head_dim")} | fields
    assert families.from_hf(older, "older") == families.from_hf(newer, "newer")
    read = transformers.LlamaConfig(**older)  # so that the case above is what HF reads
    assert read.rope_parameters.items() >= theirs.config.rope_parameters.items()


# As published, but for the number of blocks.
PUBLISHED = {
    "Llama-2-13b": {
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 5120, "initializer_range": 0.02,
        "intermediate_size": 13824, "max_position_embeddings": 4096, "model_type": "llama",
        "num_attention_heads": 40, "num_key_value_heads": 40, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False,
        "torch_dtype": "float16", "transformers_version": "4.32.0.dev0", "use_cache": True,
        "vocab_size": 32000,
    },
    "Llama-3.2-1B": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
        "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
        "num_attention_heads": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        }, "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0", "use_cache": True, "vocab_size": 128256,
    },
    "opt-350m": {
        "activation_dropout": 0.0, "activation_function": "relu",
        "architectures": ["OPTForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 2,
        "do_layer_norm_before": False, "dropout": 0.1, "eos_token_id": 2, "ffn_dim": 4096,
        "hidden_size": 1024, "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048,
        "model_type": "opt", "num_attention_heads": 16, "pad_token_id": 1, "prefix": "</s>",
        "torch_dtype": "float16", "transformers_version": "4.20.0.dev0", "use_cache": True,
        "vocab_size": 50272, "word_embed_proj_dim": 512,
    },
    "opt-13b": {
        "_name_or_path": "facebook/opt-13b", "_remove_final_layer_norm": False,
        "activation_dropout": 0.0, "activation_function": "relu",
        "architectures": ["OPTForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 2,
        "do_layer_norm_before": True, "dropout": 0.1, "eos_token_id": 2, "ffn_dim": 20480,
        "hidden_size": 5120, "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048,
        "model_type": "opt", "num_attention_heads": 40, "output_projection": True,
        "pad_token_id": 1, "prefix": "</s>", "torch_dtype": "float16",
        "transformers_version": "4.21.0.dev0", "use_cache": True, "vocab_size": 50272,
        "word_embed_proj_dim": 5120,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_have_the_tensors_of_transformers(name):
    """Real config files are accepted, and imply HF's tensors by name and shape, no more or less."""
    fields = PUBLISHED[name] | {"num_hidden_layers": 2}
    model = families.build(families.from_hf(fields, name))
    with torch.device("meta"):
        config = transformers.AutoConfig.for_model(**fields)
        reference = transformers.AutoModelForCausalLM.from_config(config)
    found = {n: tuple(p.shape) for n, p in reference.named_parameters()}
    assert weights.tensor_shapes(model) == found


@pytest.mark.parametrize("family", tiny.TORCH)
def test_bf16_stays_bf16(family):
    """In bf16 no layer widens what it hands on: twice the memory would go unseen otherwise."""
    network = families.from_hf(tiny.TORCH[family]().config.to_dict(), family)
    model = families.build(network, jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((2, 5), jnp.int32)

    def run(ids):
        variables = model.init(jax.random.key(0), ids, method="everything")
        hidden, chunk = model.apply(variables, ids)
        one, cache = model.apply(variables, ids[:, :1], jnp.zeros((2, 1), jnp.int32), chunk)
        return (variables, hidden, chunk, one, cache), model.apply(
            variables, hidden, method="logits"
        )

    held, logits = jax.eval_shape(run, ids)
    assert {leaf.dtype for leaf in jax.tree.leaves(held)} == {jnp.dtype(jnp.bfloat16)}
    assert logits.dtype == jnp.float32


# --- judges ------------------------------------------------------------------------------------

IDS = np.random.default_rng(0).integers(3, tiny.SIZES["vocab_size"], (3, 24))
CLASSIFIERS = {
    "llama": (transformers.LlamaForSequenceClassification, 14, {"num_key_value_heads": 2}),
    "llama_reward": (transformers.LlamaForSequenceClassification, 1, {}),
    "opt": (transformers.OPTForSequenceClassification, 2, {}),
    "opt_narrow": (transformers.OPTForSequenceClassification, 3, {"word_embed_proj_dim": 16}),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_equal_transformers(name):
    """A sequence classifier says of padded texts what HF's says, at each text's last token."""
    kind, n_labels, changed = CLASSIFIERS[name]
    theirs = tiny.torch_model(kind, num_labels=n_labels, pad_token_id=tiny.PAD, **changed)
    lengths = np.array([24, 7, 1])
    inside = np.arange(24) < lengths[:, None]
    ids = np.where(inside, IDS, tiny.PAD)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids), attention_mask=torch.tensor(inside).long()).logits
    model, params = tiny.ported(theirs)
    ours = tiny.logits(model, params, ids)[np.arange(3), lengths - 1]
    assert model.config.n_labels == n_labels
    assert ours.shape == expected.shape
    assert tiny.difference(ours, expected.numpy()) < TOLERANCE


class ScoreModel(torch.nn.Module):
    """Reward and cost models as safe-rlhf builds and stores them."""

    def __init__(self, base, width, bias):
        super().__init__()
        self.model = base
        self.score_head = torch.nn.Linear(width, 1, bias=bias)
        self.normalizer = torch.nn.Module()
        self.normalizer.register_buffer("mean", torch.zeros(1))
        self.normalizer.register_buffer("var", torch.ones(1))
        self.normalizer.register_buffer("count", torch.tensor([1], dtype=torch.long))

    def forward(self, ids):
        return self.score_head(self.model(ids).last_hidden_state)


SCORES = {
    "reward": (transformers.LlamaModel, ["LlamaModelForScore"], {"bias": False}),
    "cost": (transformers.LlamaModel, ["LlamaForScore"], {"score_bias": True}),
    "bias in the file alone": (transformers.LlamaModel, ["LlamaForScore"], {}),
    "opt": (transformers.OPTModel, ["OPTForScore"], {"bias": True}),
}


@pytest.mark.parametrize("name", SCORES)
def test_score_models_equal_torch(name, tmp_path):
    """safe-rlhf's score head, with and without bias, and its normaliser's statistics beside it."""
    kind, architectures, said = SCORES[name]
    opt = kind is transformers.OPTModel
    base = tiny.torch_model(kind, **({"word_embed_proj_dim": 16} if opt else {}))
    theirs = tiny.randomise(ScoreModel(base, 16 if opt else 32, said != {"bias": False}))
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    fields = base.config.to_dict() | said | {
        "architectures": architectures, "score_dim": 1, "score_type": "cost", "momentum": None,
        "do_normalize": False, "normalizer_type": None,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS)).numpy()
    model, params = tiny.load(tmp_path)
    assert model.config.label_bias == (said != {"bias": False})
    assert tiny.difference(tiny.logits(model, params, IDS), expected) < TOLERANCE


@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_half_precision_are_not_rounded(tied):
    """bf16 states and weights, f32 logits: rounded to bf16 they would tie and lose 0.06 nats."""
    network = families.from_hf(
        tiny.torch_llama(tie_word_embeddings=tied).config.to_dict(), "config"
    )
    model = families.build(network, jnp.bfloat16)
    params = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32), method="everything")
    hidden = jax.random.normal(jax.random.key(1), (5, network.embedding_width), jnp.bfloat16)
    found = model.apply(params, hidden, method="logits")
    flat = weights.flatten(params["params"])
    kernel = flat["embed/embedding"].T if tied else flat["head/kernel"]
    exact = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64)
    np.testing.assert_allclose(found, exact, atol=1e-5 * np.abs(exact).max())
