"""Fields of config.json against transformers: what its source reads, what its models compute."""

import ast
import importlib
import inspect
import pathlib
import textwrap

import numpy as np
import pytest
import tiny
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers.modeling_rope_utils import RotaryEmbeddingConfigMixin

from isara_jax.devices import processes
from isara_jax.formats import weights
from isara_jax.models import families, fields

# The code that all models share, and what its attention goes through.
SHARED = (
    "activations", "cache_utils", "configuration_utils", "masking_utils", "modeling_layers",
    "modeling_flash_attention_utils", "modeling_rope_utils", "modeling_utils",
)  # fmt: skip
INTEGRATIONS = pathlib.Path(transformers.__file__).parent / "integrations"
CONFIGS = {"config", "text_config", "decoder_config", "layer_config"}  # how that code calls them
# Read from a config object, but no field of its file: set by methods, or while a model is loaded.
NO_FIELDS = {
    "__dict__", "_post_init_done", "is_heterogeneous",
    "image_token_id", "mm_tokens_per_image", "vision_config",  # of Gemma 3's other half
}  # fmt: skip
# Left in published files by unsloth, Megatron, the hub's JavaScript, transformers 4 and others.
MARKS = {
    "is_llama_config": True, "transformers.js_config": {"dtype": "q4"}, "unsloth_fixed": True,
    "_flash_attn_2_enabled": True, "rope_interleaved": False, "activation": "gelu",
    "ignore_keys_at_rope_validation": ["x"], "_attn_implementation": "eager",
    "_model_name_or_path": "x/y", "end_token_id": 2, "full_attn": True, "momentum": 0.9,
    "learn_positional_embeddings": True, "embedding_multiplier": 12.0,
}  # fmt: skip
FAMILY_S = {"granite": ("embedding_multiplier",)}  # what is a mark elsewhere
WRONG = {
    "is_causal": [False, None], "layer_types": [["full_attention", "sliding_attention"], "full"],
    "sliding_window": [64, 0], "attention_chunk_size": [32], "kv_sharing_modes": [["reuse"]],
    "partial_rotary_factor": [0.5], "original_max_position_embeddings": [64],
    "quantization_config": [{"bits": 4}],
    "compression_config": [{"format": "pack"}], "transformers_weights": ["other.safetensors"],
}  # fmt: skip
IDS = np.random.default_rng(0).integers(3, 320, (2, 20))


def is_config(node, itself):
    name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
    return name in CONFIGS or (itself and name == "self")


def reads(source, itself=False):
    """Names that code reads: `config.x`, `getattr(config, "x")`.

    With `itself` the code is a config's own: `self.x` and `kwargs.pop("x")` count, too.
    """
    for node in ast.walk(ast.parse(textwrap.dedent(source))):
        if isinstance(node, ast.Attribute) and is_config(node.value, itself):
            yield node.attr
        if not isinstance(node, ast.Call):
            continue
        name = next((a.value for a in node.args if isinstance(a, ast.Constant)), None)
        of = node.func
        if getattr(of, "id", "") in ("getattr", "hasattr") and is_config(node.args[0], itself):
            yield name
        if (
            itself
            and getattr(of, "attr", "") in ("pop", "get")
            and getattr(of.value, "id", "") == "kwargs"
        ):
            yield name


def read_by_transformers(family):
    """What its class has as fields, its models read, or the code that all share reads."""
    config = transformers.AutoConfig.for_model(family)
    module = type(config).__module__.replace("configuration_", "modeling_")
    modules = [module.removeprefix("transformers."), *SHARED]
    texts = [inspect.getsource(importlib.import_module(f"transformers.{m}")) for m in modules]
    texts += [path.read_text(encoding="utf-8") for path in INTEGRATIONS.glob("*attention*.py")]
    own = (
        transformers.PretrainedConfig.__post_init__, type(config).__post_init__,
        RotaryEmbeddingConfigMixin.convert_rope_params_to_dict,
        RotaryEmbeddingConfigMixin.standardize_rope_params,
        RotaryEmbeddingConfigMixin.nested_rope_parameter_keys,
    )  # fmt: skip
    found = {*vars(config), *config.to_dict()}.union(*map(reads, texts))
    found = found.union(*(reads(inspect.getsource(function), itself=True) for function in own))
    return {n for n in found - {None} if not callable(getattr(type(config), n, None))}


@pytest.mark.parametrize("family", tiny.TORCH)
def test_every_field_that_transformers_reads_is_in_a_list(family, monkeypatch):
    """A field that a newer transformers reads is honoured, refused, or known to change nothing.

    What it does not read may be passed over; this is what makes that right.
    """
    honoured, take = set(), fields.Fields.take

    def noted(self, name, *default):
        honoured.add(name)
        return take(self, name, *default)

    monkeypatch.setattr(fields.Fields, "take", noted)
    families.from_hf(transformers.AutoConfig.for_model(family).to_dict(), family)
    known = honoured | fields.HARMLESS | fields.REFUSED | NO_FIELDS
    found = read_by_transformers(family)
    assert {"is_causal", "sliding_window", "hidden_size", "rope_theta"} <= found
    assert found <= known, " ".join(sorted(found - known))
    assert not fields.HARMLESS & fields.REFUSED


def torch_logits(fields, weights):
    """Of the same weights under other fields."""
    model = type(weights)(type(weights.config)(**fields, attn_implementation="eager")).eval()
    model.load_state_dict(weights.state_dict())
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


@pytest.mark.parametrize("family", tiny.TORCH)
def test_marks_of_tools_are_passed_over_and_said(family, monkeypatch):
    """They change nothing in transformers either; one line names those that nobody reads."""
    said = []
    monkeypatch.setattr(processes.endings, "say", said.append)
    processes.say_once.cache_clear()
    theirs = tiny.TORCH[family]()
    plain = theirs.config.to_dict()
    network = families.from_hf(plain, "config.json")
    assert not said
    marks = {name: value for name, value in MARKS.items() if name not in FAMILY_S.get(family, ())}
    for _ in range(2):
        assert families.from_hf(plain | marks, "config.json") == network
    (line,) = said
    assert line.startswith("config.json: passed over")
    assert all(name in line for name in marks.keys() - fields.HARMLESS if marks[name])
    marked = {k: v for k, v in (plain | marks).items() if k != "_attn_implementation"}
    np.testing.assert_array_equal(torch_logits(marked, theirs), torch_logits(plain, theirs))


# What each field is changed to, beside numbers (times 1.5), flags (turned) and lists (reversed).
OTHER = {
    "hidden_act": "relu", "hidden_activation": "relu", "activation_function": "silu",
    "sliding_window": 5, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.05,
    "rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.0},
    "use_bidirectional_attention": True, "max_window_layers": 0, "no_rope_layer_interval": 1,
    "layer_types": ["full_attention", "sliding_attention"],
}  # fmt: skip
# Sizes of tensors, what transformers has written out in other fields before it is read, and what
# its models return.
SKIPPED = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "ffn_dim", "word_embed_proj_dim",
    "max_position_embeddings", "original_max_position_embeddings", "no_rope_layer_interval",
    "max_window_layers", "_sliding_window_pattern", "architectures", "model_type", "return_dict",
    "tie_word_embeddings",  # the weights below are tied as they are
}  # fmt: skip


def changed(name, value):
    """Another value of a field, or None where there is nothing to try."""
    if name in OTHER:
        return OTHER[name] if value != OTHER[name] else None
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return type(value)(value * 1.5) if value else 0.5
    return value[::-1] if isinstance(value, list) and value[::-1] != value else None


@pytest.mark.parametrize("family", tiny.TORCH)
def test_one_field_changed_is_read_refused_or_without_effect_there(family, record_property):
    """What moves transformers' logits gives another network or is refused; what does not, is not.

    One exception: what is refused may be without effect in these models.
    """
    windowed = {"sliding_window", "use_sliding_window"} & vars(tiny.TORCH[family]().config).keys()
    windows = {name: 7 if name == "sliding_window" else True for name in windowed}
    theirs = tiny.TORCH[family](**windows)
    plain = theirs.config.to_dict()
    network, before = families.from_hf(plain, family), torch_logits(plain, theirs)
    table = {}
    for name, value in plain.items():
        other = changed(name, value)
        if other is None or name in SKIPPED:
            continue
        try:
            found = "read" if families.from_hf(plain | {name: other}, family) != network else "same"
        except ValueError:
            found = "refused"
        try:
            moved = np.abs(torch_logits(plain | {name: other}, theirs) - before).max() > 1e-6
        except (ValueError, KeyError, TypeError, RuntimeError, StrictDataclassError):
            assert found != "same", name  # transformers fails, too
            continue
        assert found in (("read", "refused") if moved else ("same", "refused")), (name, found)
        table[name] = found
    record_property("fields", table)
    assert "read" in table.values() and "same" in table.values()


@pytest.mark.parametrize("family", tiny.TORCH)
def test_the_default_config_of_transformers_is_read(family):
    """And makes the tensors that transformers makes of it, by name and shape."""
    fields = transformers.AutoConfig.for_model(family).to_dict() | {"num_hidden_layers": 2}
    for name in ("layer_types", "no_rope_layers"):
        fields |= {name: fields[name][:2]} if fields.get(name) else {}
    model = families.build(families.from_hf(fields, family))
    with torch.device("meta"):
        config = transformers.AutoConfig.for_model(**fields)
        reference = transformers.AutoModelForCausalLM.from_config(config)
    found = {n: tuple(p.shape) for n, p in reference.named_parameters()}
    assert weights.tensor_shapes(model) == found


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mixtral", "mixtures of experts"), ("qwen3_moe", "mixtures of experts"),
        ("gpt_oss", "mixtures of experts"), ("gemma4", "by layer"), ("gemma3n", "by layer"),
        ("qwen3_5", "linear attention"), ("qwen2_5_vl", "pictures"), ("llava", "pictures"),
        ("gpt2", "supported: llama, opt, mistral"), (None, "supported: llama"),
    ],
)  # fmt: skip
def test_other_families_are_refused_by_name(name, why):
    """With what is missing, where it is known."""
    with pytest.raises(ValueError, match=f"model_type is {name!r}.*{why}"):
        families.from_hf({"model_type": name}, "config.json")


def test_code_that_transformers_has_since_may_be_named():
    """As in Phi-3's published files; it is not run, nor is any other code, which is refused."""
    plain = transformers.AutoConfig.for_model("phi3").to_dict()
    named = {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "microsoft/Phi-3-mini-4k-instruct--modeling_phi3.Phi3ForCausalLM",
    }
    assert families.from_hf(plain | {"auto_map": named}, "") == families.from_hf(plain, "")
    for other in ("modeling_flash_phi3.Phi3ForCausalLM", "modeling_phi3.Own", None):
        with pytest.raises(ValueError, match="auto_map is .*never run"):
            families.from_hf(plain | {"auto_map": named | {"AutoModel": other}}, "")


ROPES = {
    "a list": ("phi3", {"rope_type": ["su"]}, "default or longrope"),
    "another of Phi-3": ("phi3", {"rope_type": "linear", "factor": 2.0}, "default or longrope"),
    "too few factors": (
        "phi3",
        {"rope_type": "su", "short_factor": [1.0], "long_factor": [1.0]}, "a list of 48 numbers",
    ),
    "a logarithm of 1": (
        "llama", {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0}, "theta must be above 1",
    ),
    "more than all": ("phi3", {"partial_rotary_factor": 1.5}, "partial_rotary_factor 1.5"),
    "a part elsewhere": ("llama", {"partial_rotary_factor": 0.5}, "only 1"),
    "no kind of layer": ("gemma3_text", {"rope_type": "linear"}, "full_attention and sliding"),
    "two thetas": (
        "olmo3", {"full_attention": {"rope_theta": 1e4}}, "say it in rope_parameters",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ROPES)
def test_wrong_ropes_are_named(case):
    """In a line, by field and value, before anything is computed with them."""
    family, given, said = ROPES[case]
    plain = transformers.AutoConfig.for_model(family).to_dict() | {"rope_parameters": given}
    with pytest.raises(ValueError, match=f"config.json: .*{said}"):
        families.from_hf(plain, "config.json")


@pytest.mark.parametrize("field", WRONG)
def test_what_changes_logits_is_refused_by_name(field):
    """Null and zero count where transformers counts them."""
    plain = transformers.AutoConfig.for_model("llama").to_dict()
    for value in WRONG[field]:
        with pytest.raises(ValueError, match=f"config.json: not supported: {{'{field}'"):
            families.from_hf(plain | {field: value}, "config.json")


def test_what_goes_without_saying_may_be_said():
    """transformers' newer files write it out."""
    plain = transformers.AutoConfig.for_model("llama").to_dict()
    same = {"is_causal": True, "layer_types": ["full_attention"] * 32, "sliding_window": None}
    same |= {"partial_rotary_factor": 1.0, "quantization_config": None}
    assert families.from_hf(plain | same, "") == families.from_hf(plain, "")


@pytest.mark.parametrize("value", [False, None])
def test_null_is_not_causal(value):
    """Why it is refused: transformers' mask lets tokens see what follows them."""
    theirs = tiny.TORCH["llama"]()
    plain = theirs.config.to_dict()
    moved = torch_logits(plain | {"is_causal": value}, theirs) - torch_logits(plain, theirs)
    assert np.abs(moved).max() > 1e-3
