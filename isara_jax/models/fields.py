"""Reading an HF `config.json`: a field is honoured, changes nothing, is refused, or is passed over.

Tools leave marks of their own in these files. What neither transformers' class of a `model_type`
nor the code that all its models share reads cannot change the logits there, so it is passed over,
and said. What they do read stands in a list below; a test goes through transformers' source.
"""

import re
import sys
from collections.abc import Callable
from typing import Any

from isara_jax.devices import processes
from isara_jax.models.activations import ACTIVATIONS
from isara_jax.shell import terminal
from isara_jax.shell.terminal import quoted

# Fields that change no logit: bookkeeping, training, generation defaults.
HARMLESS = {
    "architectures", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id",
    "initializer_range", "is_encoder_decoder", "label2id", "model_type", "output_attentions",
    "output_hidden_states", "pad_token_id", "pretraining_tp", "problem_type", "return_dict",
    "torch_dtype", "transformers_version", "use_cache", "_name_or_path", "attention_dropout",
    "tokenizer_class", "max_sequence_length", "_attn_implementation_autoset",
    "id2label", "num_labels", "unsloth_version", "max_length", "min_length", "prefix",
    "temperature", "top_k", "top_p", "do_sample", "torchscript", "name_or_path", "_commit_hash",
    "_output_attentions", "_auto_class", "classifier_dropout", "hidden_dropout", "rms_norm_eps",
    "initializer_factor", "init_std", "ignore_keys_at_rope_validation", "unk_token_id",
    "embd_pdrop", "resid_pdrop",
    # How it is computed, and on which devices.
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "experts_implementation", "_experts_implementation", "_experts_implementation_internal",
    "base_model_tp_plan", "base_model_pp_plan", "distributed_config", "fusion_config",
    # Of heads that guess further tokens or label single ones, and of layers that are not here.
    "number_of_conv_states",
    "num_mtp_layers", "mtp_layer_types", "mtp_mlp_layer_types", "mtp_per_layer_config",
    "mtp_hidden_states_first", "chain_hidden_post_norm", "logits_mup_width_multiplier",
    "unpadded_vocab_size", "token_classification_bias", "first_k_dense_replace", "mlp_layer_types",
    # Of whole dumps by transformers 4 (`PretrainedConfig.to_dict`).
    "bad_words_ids", "begin_suppress_tokens", "decoder_start_token_id", "diversity_penalty",
    "early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty",
    "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing",
    "length_penalty", "low_memory", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_return_sequences", "output_past", "output_scores", "remove_invalid_values",
    "renormalize_logits", "repetition_penalty", "return_dict_in_generate", "sep_token_id",
    "suppress_tokens", "task_specific_params", "tf_legacy_loss", "typical_p",
}  # fmt: skip
# Fields that change the logits, or what they are computed from, unless a family honours them.
REFUSED = {
    "attention_chunk_size", "is_causal", "kv_sharing_modes", "layer_types", "num_kv_shared_layers",
    "sliding_window", "per_layer_config", "head_dim", "num_key_value_heads", "pruned_heads",
    # RoPE, beside what `rope` reads.
    "rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor", "default_theta",
    "default_rope_type", "_rope_type_labels", "original_max_position_embeddings",
    # Packed weights, other files, other models inside, other names of fields.
    "quantization_config", "compression_config", "_is_quantized", "transformers_weights",
    "text_config", "decoder", "generator", "text_encoder", "sub_configs", "sub_configs_defaults",
    "attribute_map",
}  # fmt: skip
# Of what a network is made of: more than any has. With each block the work of reading it grows.
_MOST = {"num_hidden_layers": 1000, "vocab_size": 1 << 24}
_NOTHING = (None, False, {}, [])  # values that set nothing; 0 and false are two
# Of safe-rlhf's score models: how they were trained, and the kind of score.
_SCORE_MODEL = ("score_type", "architecture", "momentum", "normalizer_type", "mean", "var")
_SCORE_REFUSED = ("do_normalize",)  # changes scores


class Fields:
    """The fields of a config that are still to be accounted for.

    Args:
      values: the content of the file.
      source: its name, for messages.
      family: how messages call the model.

    Attributes:
      length: `max_position_embeddings`, as it stands there.

    Raises:
      ValueError: the model brings its own code.
    """

    def __init__(self, values: dict[str, Any], source: str, family: str) -> None:
        self._left, self.source, self._family = dict(values), source, family
        self.length = values.get("max_position_embeddings")
        self._refused = set(REFUSED)
        if self._left.get("auto_map") and not self._is_transformers_own(self._left.pop("auto_map")):
            self.fail(
                "auto_map", values["auto_map"],
                f"code that comes with a model is never run; if this is a plain {family}, remove "
                "the field",
            )  # fmt: skip

    def _is_transformers_own(self, classes: Any) -> bool:
        """Whether code that comes along is by its names what transformers has since: Phi-3's is."""
        kind = re.escape(str(self._left.get("model_type")))
        own = re.compile(rf"(.*--)?(configuration|modeling)_{kind}\.{kind}\w+", re.IGNORECASE)
        named = classes.values() if isinstance(classes, dict) else [classes]
        return all(isinstance(name, str) and own.fullmatch(name) for name in named)

    def take(self, name: str, *default: Any) -> Any:
        """The value of a field, which is then accounted for; null counts as absent.

        Raises:
          ValueError: the field is absent and has no default.
        """
        value = self._left.pop(name, None)
        if value is not None:
            return value
        if not default:
            raise ValueError(
                f"{self.source}: field {name!r} is missing; {self._family} configs have it"
            )
        return default[0]

    def count(self, name: str, *default: int) -> int:
        """A whole number above 0, of a size that networks can have."""
        value, most = self.take(name, *default), _MOST.get(name, 2**31 - 1)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
            rule = "below 2^31" if name not in _MOST else f"at most {most:,}"
            self.fail(name, value, f"a whole number above 0 (and {rule}) is expected")
        return value

    def optional(self, name: str, read: Callable[[str, Any], Any], default: Any) -> Any:
        """`read(name, default)`; 0 where the field is null, which is not the same as absent."""
        if self._left.get(name, default or None) is None:
            self.take(name, None)
            return 0
        return read(name, default)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            self.fail(name, value, "true or false is expected")
        return value

    def number(self, name: str, default: float) -> float:
        """A number above 0."""
        value = self.take(name, default)
        if not is_positive(value):
            self.fail(name, value, "a number above 0 is expected")
        return float(value)

    def activation(self, name: str, default: str) -> str:
        """The name of an activation that there is."""
        value = self.take(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            self.fail(name, value, f"supported: {', '.join(ACTIVATIONS)}")
        return value

    def labels(self) -> dict[str, Any]:
        """`n_labels` of the head that `architectures` names, and whether it has a bias.

        Raises:
          ValueError: a head that is neither a language model's nor a judge's.
        """
        named = self.take("architectures", [])
        if not isinstance(named, list) or not all(isinstance(n, str) for n in named):
            self.fail("architectures", named, "a list of names is expected")
        name = named[0] if named else "ForCausalLM"
        if name.endswith("ForScore") or "score_dim" in self._left:
            return self._score_head()
        if name.endswith("ForSequenceClassification"):
            named = self.take("id2label", {})
            if not isinstance(named, dict):
                self.fail("id2label", named, "an object is expected")
            return {"n_labels": len(named) or self.count("num_labels", 2)}
        if name.endswith(("ForCausalLM", "Model", "LMHeadModel")):
            return {}
        return self.fail(
            "architectures", named,
            "a language model, a sequence classifier or a score model is expected",
        )  # fmt: skip

    def _score_head(self) -> dict[str, Any]:
        self._refused.update(_SCORE_REFUSED)
        for name in _SCORE_MODEL:
            self.take(name, None)
        bias = [self.flag(name, False) for name in ("bias", "score_bias")]  # older, newer
        return {"n_labels": self.count("score_dim", 1), "label_bias": any(bias)}

    def fail(self, name: str, value: Any, rule: str) -> Any:
        """Raises `ValueError` about one field."""
        raise ValueError(f"{self.source}: {name} is {quoted(value)}; {rule}")

    def finish(self) -> None:
        """Accounts for the fields that are left; what nobody reads is said once.

        Raises:
          ValueError: one of them changes the logits.
        """
        left = {
            name: value for name, value in self._left.items()
            if name not in HARMLESS and not _sets_nothing(name, value)
        }  # fmt: skip
        if refused := {k: v for k, v in left.items() if k in self._refused}:
            raise ValueError(
                f"{self.source}: not supported: {quoted(refused, 400)}; it might change the logits."
                " Remove what does not"
            )
        if left:
            processes.say_once(
                f"{self.source}: passed over, as transformers does for {self._family}: "
                f"{terminal.line(', '.join(sorted(left)))}"
            )


def _sets_nothing(name: str, value: Any) -> bool:
    """Whether a field says what goes without saying."""
    if name == "is_causal":
        return value is True  # null lets eager attention see what follows
    if name == "layer_types" and isinstance(value, list):
        return all(kind == "full_attention" for kind in value)
    if name == "partial_rotary_factor" and value == 1:
        return True
    return any(type(value) is type(nothing) and value == nothing for nothing in _NOTHING)


def is_positive(value: Any) -> bool:
    """Whether a value of a JSON file is a number above 0 that a float can hold."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value <= sys.float_info.max
