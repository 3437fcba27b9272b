"""GGUF files of torch models, as llama.cpp's converter writes them, and what they are compared by.

llama.cpp is not here: what its converter does to a model is written down in `written`.
"""

import copy
import dataclasses

import gguf
import numpy as np
import tiny
import torch
import transformers
from gguf import GGMLQuantizationType as Type

from isara_jax.formats.from_gguf import conversion

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
IDS = np.random.default_rng(0).integers(3, 320, (2, 11))
# What llama.cpp calls the families of transformers, where it has another name.
ARCHITECTURE = {"mistral": "llama", "gemma3_text": "gemma3", "olmo3": "olmo2"}
TURNED = ("llama", "smollm3", "granite")  # classes of the converter that permute


@dataclasses.dataclass(frozen=True)
class Words:
    """A vocabulary as a GGUF file holds it; `extra` is whatever else the tokenizer says."""

    model: str
    words: tuple
    types: tuple
    merges: tuple | None = None
    scores: tuple | None = None
    extra: dict = dataclasses.field(default_factory=dict)

    def fields(self):
        arrays = {
            "tokens": self.words, "token_type": self.types, "merges": self.merges,
            "scores": self.scores,
        }  # fmt: skip
        found = {f"ggml.{name}": list(value) for name, value in arrays.items() if value is not None}
        return {
            f"tokenizer.{name}": value
            for name, value in ({"ggml.model": self.model} | found | self.extra).items()
        }


def llamas_words(n=326, **extra):
    """A vocabulary in which every kind of token occurs."""
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    pieces = ["▁", *"abcdefghij", "ab", "▁ab", "cd", "abcd"]
    words = ["<unk>", "<s>", "</s>", *bytes_, *pieces]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces)
    words += ["<|user|>", "  tab"]
    types += [CONTROL, USER]
    filled = range(len(words), n)
    words += [f"[PAD{i}]" for i in filled]
    types += [UNUSED] * len(filled)
    scores = [0.0] * 259 + [-float(i) for i in range(len(words) - 259)]
    extra = {
        "ggml.bos_token_id": 1, "ggml.eos_token_id": 2, "ggml.unknown_token_id": 0,
        "ggml.pre": "default",
    } | extra  # fmt: skip
    return Words("llama", tuple(words), tuple(types), scores=tuple(scores), extra=extra)


def add(writer, name, value):
    """One value of metadata, in the type that the converter gives it."""
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def turned(weight, n_heads):
    """What the converter does to queries and keys (`LlamaModel.permute`)."""
    halves = weight.reshape(n_heads, 2, weight.shape[0] // n_heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def packed(values, kind):
    """Values as blocks; those of the K-quants, which the package does not pack, are made up."""
    if kind not in (Type.Q4_K, Type.Q6_K):
        return gguf.quantize(values, kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    shape = (*values.shape[:-1], values.shape[-1] // block, size)
    data = np.random.default_rng(values.size).integers(0, 256, shape, np.uint8)
    for at in (0, 2) if kind == Type.Q4_K else (size - 2,):  # scales, which must be finite
        data[..., at : at + 2] = np.asarray([0.002], np.float16).view(np.uint8)
    return data.reshape(*values.shape[:-1], -1)


def architecture(config):
    return ARCHITECTURE.get(config.model_type, config.model_type)


def metadata(config):
    """What the converter writes of every family, and then of each."""
    found = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    found |= OF_FAMILY[config.model_type](config)
    fields = {f"{architecture(config)}.{name}": value for name, value in found.items()}
    return fields | {"general.file_type": 0}


def _base(config):
    theta = config.rope_parameters.get("full_attention", config.rope_parameters)["rope_theta"]
    return {"rope.freq_base": float(theta)}


def _lengths(config):
    return {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}


def _llama(config):
    turned = {"vocab_size": config.vocab_size, "rope.dimension_count": config.head_dim}
    return _base(config) | turned


def _gemma2(config):
    return _lengths(config) | {
        "attn_logit_softcapping": config.attn_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
        "attention.sliding_window": config.sliding_window,
    }


def _gemma3(config):
    window = {"attention.sliding_window": config.sliding_window}
    full = config.rope_parameters["full_attention"]
    if full["rope_type"] == "linear":
        window |= {"rope.scaling.type": "linear", "rope.scaling.factor": full["factor"]}
    return _base(config) | _lengths(config) | window


def _olmo3(config):
    full = config.rope_parameters["full_attention"]
    yarn = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": full["factor"],
        "rope.scaling.attn_factor": full["attention_factor"],
        "rope.scaling.original_context_length": full["original_max_position_embeddings"],
    }
    windows = [kind == "sliding_attention" for kind in config.layer_types]
    return _base(config) | yarn | {
        "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": windows,
    }  # fmt: skip


def _granite(config):
    return _llama(config) | {
        "attention.scale": config.attention_multiplier,
        "embedding_scale": config.embedding_multiplier,
        "residual_scale": config.residual_multiplier,
        "logit_scale": config.logits_scaling,
    }


def _phi3(config):
    rope = config.rope_parameters
    part = int(rope.get("partial_rotary_factor", 1.0) * config.hidden_size)
    found = _base(config) | {
        "rope.dimension_count": part // config.num_attention_heads,
        "rope.scaling.original_context_length": config.original_max_position_embeddings,
        "attention.sliding_window": config.sliding_window or 0,
    }
    if rope["rope_type"] == "longrope":
        original = config.original_max_position_embeddings
        scale = config.max_position_embeddings / original
        found["rope.scaling.attn_factor"] = float(
            np.sqrt(1 + np.log(scale) / np.log(original)) if scale > 1 else 1
        )
    return found


OF_FAMILY = {
    "llama": _llama,
    "mistral": _llama,
    "smollm3": _llama,
    "qwen2": _base,
    "qwen3": lambda config: _base(config) | _lengths(config),
    "gemma": _lengths,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "olmo2": _base,
    "olmo3": _olmo3,
    "granite": _granite,
    "phi3": _phi3,
}


def tensors(theirs):
    """A torch model's under the names of GGUF, changed as the converter does."""
    config, name = theirs.config, architecture(theirs.config)
    kind = {known: kind for kind, known in gguf.MODEL_ARCH_NAMES.items()}[name]
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    for hf_name, value in theirs.state_dict().items():
        if hf_name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, part = hf_name.rsplit(".", 1)
        ours, values = names.get_name(stem), value.float().numpy()
        field = heads.get(ours.rsplit(".", 1)[-1])
        if field and name in TURNED:
            values = turned(values, getattr(config, field))
        if name.startswith("gemma") and hf_name.endswith("norm.weight"):
            values = values + 1
        yield f"{ours}.{part}", values
    if config.rope_parameters.get("rope_type") == "longrope":
        for which in ("long", "short"):
            values = config.rope_parameters[f"{which}_factor"]
            yield f"rope_factors_{which}.weight", np.asarray(values, np.float32)


def written(path, theirs, words=None, kind=Type.F32, changed=None, more=None):
    """The GGUF file of a torch model.

    `kind` is of matrices, or tells it by name; `changed` metadata replaces (None: removes) what is
    there; `more` are further tensors.
    """
    writer = gguf.GGUFWriter(path, architecture(theirs.config))
    fields = metadata(theirs.config) | (words or llamas_words()).fields() | (changed or {})
    for name, value in fields.items():
        if value is not None:
            add(writer, name, value)
    for name, values in tensors(theirs):
        of = (kind(name) if callable(kind) else kind) if values.ndim == 2 else Type.F32
        writer.add_tensor(name, packed(values, of), raw_dtype=of)
    for name, values in (more or {}).items():
        writer.add_tensor(name, values)
    finish(writer)
    return path


# --- what comes back ------------------------------------------------------------------------------


def rounded(model):
    """The model, its weights (and not RoPE's frequencies) as bf16 holds them."""
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(value.bfloat16())
    return model


def bits(tensor):
    return tensor.detach().to(torch.bfloat16).contiguous().view(torch.int16).numpy()


def read_by_transformers(path):
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()


def convert(path, folder):
    conversion.convert(path, folder)
    return folder


def same_model(folder, reference):
    """Bit by bit in bf16, and the logits of both in f32."""
    again = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found, wanted = again.state_dict(), reference.state_dict()
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(bits(found[name]), bits(value), err_msg=name)
    got = tiny.logits(*tiny.load(folder), IDS)
    assert tiny.difference(got, tiny.torch_logits(rounded(copy.deepcopy(reference)), IDS)) < 1e-4
    assert tiny.difference(got, tiny.torch_logits(again, IDS)) < 1e-4
