"""What a family's config can change, and what it would be to forget that.

A variant is the fields that are changed, and the same without what makes it one, with weights of
the same shapes where there are any (None: it is the default, so there is nothing to forget).
"""

ROPE = {"rope_theta": 10_000.0}
# Of the four waves of a head of 8, the first is kept, the second blended, the others divided.
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 100,
}  # fmt: skip
DEFAULT = {"rope_parameters": {"rope_type": "default"} | ROPE}
YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 8.0,
    "beta_slow": 1.0,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0, 4.0], "long_factor": [2.0] * 4,
    "rope_theta": 10_000.0, "partial_rotary_factor": 1.0,
}  # fmt: skip
FULL, WINDOWED = "full_attention", "sliding_attention"
BOTH = {"rope_type": "default", "rope_theta": 500_000.0}
NO_WINDOW = {"sliding_window": 4096}
WINDOW = {"sliding_window": 7}

LLAMA = {
    "plain": ({}, None),
    "gqa": (
        {"num_key_value_heads": 2},
        {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
    ),
    "mqa": (
        {"num_key_value_heads": 1},
        {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 4},
    ),
    "head_dim": (
        {"head_dim": 16, "num_key_value_heads": 2},
        {"head_dim": 8, "num_attention_heads": 8, "num_key_value_heads": 4},
    ),
    "sizes": (
        {"vocab_size": 301, "hidden_size": 48, "intermediate_size": 40, "num_attention_heads": 6,
         "num_key_value_heads": 3},
        {"num_attention_heads": 12, "num_key_value_heads": 6, "head_dim": 4},
    ),
    "three_layers": ({"num_hidden_layers": 3}, {"num_hidden_layers": 2}),
    "tied": ({"tie_word_embeddings": True}, {"tie_word_embeddings": False}),
    "attention_bias": ({"attention_bias": True}, {"attention_bias": False}),
    "mlp_bias": ({"mlp_bias": True}, {"mlp_bias": False}),
    "eps": ({"rms_norm_eps": 0.1}, {"rms_norm_eps": 1e-6}),
    "activation": ({"hidden_act": "gelu"}, {"hidden_act": "silu"}),
    "theta": ({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, DEFAULT),
    "linear_rope": ({"rope_parameters": {"rope_type": "linear", "factor": 4.0} | ROPE}, DEFAULT),
    "llama3_rope": ({"rope_parameters": LLAMA3 | ROPE}, DEFAULT),
    # Within its length it is the default, so there is nothing to forget.
    "dynamic_rope": ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0} | ROPE}, None),
    "yarn": ({"rope_parameters": YARN | ROPE}, DEFAULT),
    "yarn_whole": (
        {"rope_parameters": YARN | ROPE | {"truncate": False}}, {"rope_parameters": YARN | ROPE},
    ),
    "yarn_factor": (
        {"rope_parameters": YARN | ROPE | {"attention_factor": 1.5}},
        {"rope_parameters": YARN | ROPE},
    ),
    "yarn_mscale": (
        {"rope_parameters": YARN | ROPE | {"mscale": 2.0, "mscale_all_dim": 0.5}},
        {"rope_parameters": YARN | ROPE},
    ),
    "like_3.2": (
        {"num_key_value_heads": 2, "tie_word_embeddings": True, "head_dim": 16,
         "rope_parameters": LLAMA3 | {"rope_theta": 500.0}, "rms_norm_eps": 1e-5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
}  # fmt: skip
OPT = {
    "plain": ({}, None),
    "like_350m": (
        {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
        {"do_layer_norm_before": True},
    ),
    "post_norm": (
        {"do_layer_norm_before": False},
        {"do_layer_norm_before": True, "_remove_final_layer_norm": True},
    ),
    "narrow": ({"word_embed_proj_dim": 16}, {"word_embed_proj_dim": 32}),
    "no_final_norm": ({"_remove_final_layer_norm": True}, {"_remove_final_layer_norm": False}),
    "no_biases": ({"enable_bias": False}, {"enable_bias": True}),
    "plain_norms": (
        {"layer_norm_elementwise_affine": False},
        {"layer_norm_elementwise_affine": True},
    ),
    "untied": ({"tie_word_embeddings": False}, {"tie_word_embeddings": True}),
    "activation": ({"activation_function": "gelu"}, {"activation_function": "relu"}),
    "heads": ({"num_attention_heads": 2}, {"num_attention_heads": 4}),
}
MISTRAL = {
    "plain": ({"sliding_window": None, "num_key_value_heads": 2}, None),
    "window": (WINDOW, NO_WINDOW),
    "head_dim": ({"head_dim": 16} | WINDOW, NO_WINDOW),
}
QWEN2 = {
    "plain": ({}, None),
    "windows": (
        {"use_sliding_window": True, "max_window_layers": 1} | WINDOW,
        NO_WINDOW,
    ),
    "layer_types": (
        {"use_sliding_window": True, "layer_types": [WINDOWED, FULL]} | WINDOW,
        {"use_sliding_window": True, "layer_types": [FULL, WINDOWED]} | WINDOW,
    ),
    "tied": ({"tie_word_embeddings": True}, {"tie_word_embeddings": False}),
}
QWEN3 = {
    "plain": ({"num_key_value_heads": 2}, None),
    "attention_bias": ({"attention_bias": True}, {"attention_bias": False}),
    "windows": (
        {"use_sliding_window": True, "max_window_layers": 1} | WINDOW,
        NO_WINDOW,
    ),
    "yarn": ({"rope_parameters": YARN | ROPE}, DEFAULT),
}
GEMMA = {
    "plain": ({"num_key_value_heads": 1}, None),
    "gelu": ({"hidden_act": "gelu"}, {"hidden_act": "silu"}),
    "untied": ({"tie_word_embeddings": False}, {"tie_word_embeddings": True}),
    "attention_bias": ({"attention_bias": True}, {"attention_bias": False}),
}
SCALAR = {"query_pre_attn_scalar": 24}
GEMMA2 = {
    "plain": (SCALAR, None),
    "scale": (SCALAR, {"query_pre_attn_scalar": 8}),
    "window": (SCALAR | WINDOW, NO_WINDOW),
    "layer_types": (SCALAR | WINDOW | {"layer_types": [FULL, WINDOWED]}, NO_WINDOW),
    "score_cap": (SCALAR | {"attn_logit_softcapping": 1.0}, {"attn_logit_softcapping": 50.0}),
    "logit_cap": (SCALAR | {"final_logit_softcapping": 0.05}, {"final_logit_softcapping": None}),
    "no_caps": (
        SCALAR | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        {"final_logit_softcapping": 0.05},
    ),
}
ROPES = {WINDOWED: {"rope_type": "default"} | ROPE, FULL: BOTH}
SIX = SCALAR | {"num_hidden_layers": 6} | WINDOW
GEMMA3 = {
    "six_layers": (SIX, NO_WINDOW),
    "pattern": (
        SCALAR | WINDOW | {"layer_types": [FULL, WINDOWED], "rope_parameters": ROPES},
        {"layer_types": [WINDOWED, FULL]},
    ),
    "theta_full": (
        SCALAR | WINDOW | {"layer_types": [FULL, WINDOWED], "rope_parameters": ROPES},
        {"rope_parameters": ROPES | {FULL: ROPES[WINDOWED]}},
    ),
    "theta_windowed": (
        SCALAR | WINDOW | {"layer_types": [FULL, WINDOWED], "rope_parameters": ROPES},
        {"rope_parameters": ROPES | {WINDOWED: BOTH}},
    ),
    "linear_on_full": (
        SCALAR | WINDOW | {
            "layer_types": [FULL, WINDOWED],
            "rope_parameters": ROPES | {FULL: BOTH | {"rope_type": "linear", "factor": 8.0}},
        },
        {"rope_parameters": ROPES},
    ),
    "logit_cap": (
        SCALAR | WINDOW | {"final_logit_softcapping": 0.05}, {"final_logit_softcapping": None},
    ),
}  # fmt: skip
OLMO2 = {
    "plain": ({}, None),
    "gqa": (
        {"num_key_value_heads": 2, "tie_word_embeddings": True}, {"tie_word_embeddings": False},
    ),
    "attention_bias": ({"attention_bias": True}, {"attention_bias": False}),
}  # fmt: skip
FOUR = {"num_hidden_layers": 4} | WINDOW
OLMO3 = {
    "four_layers": (FOUR, NO_WINDOW),
    "yarn_on_full": (
        WINDOW | {
            "layer_types": [WINDOWED, FULL],
            "rope_parameters": {WINDOWED: BOTH, FULL: BOTH | YARN},
        },
        {"rope_parameters": {WINDOWED: BOTH, FULL: BOTH}},
    ),
    "gqa": ({"num_key_value_heads": 2} | WINDOW, NO_WINDOW),
}  # fmt: skip
SMOLLM3 = {
    "four_layers": ({"num_hidden_layers": 4}, {"no_rope_layers": [1, 1, 1, 1]}),
    "layers": ({"no_rope_layers": [0, 1]}, {"no_rope_layers": [1, 0]}),
    "interval": ({"no_rope_layer_interval": 2}, {"no_rope_layers": [1, 1]}),
    "windows": (
        {"use_sliding_window": True, "no_rope_layers": [0, 1]} | WINDOW,
        NO_WINDOW,
    ),
    "biases": (
        {"attention_bias": True, "mlp_bias": True}, {"attention_bias": False, "mlp_bias": False},
    ),
    "untied": ({"tie_word_embeddings": False}, {"tie_word_embeddings": True}),
}  # fmt: skip
SCALES = {
    "embedding_multiplier": 12.0, "residual_multiplier": 0.5, "attention_multiplier": 0.5,
    "logits_scaling": 4.0,
}  # fmt: skip
GRANITE = {
    "plain": (SCALES, None),
    **{name: (SCALES, {name: 1.0}) for name in SCALES},
    "biases": (
        SCALES | {"attention_bias": True, "mlp_bias": True},
        {"attention_bias": False, "mlp_bias": False},
    ),
}
PHI3 = {
    "plain": ({"num_key_value_heads": 2}, None),
    "window": (WINDOW, {"sliding_window": None}),
    "part": (
        {"rope_parameters": DEFAULT["rope_parameters"] | {"partial_rotary_factor": 0.5}}, DEFAULT,
    ),
    "longrope": (
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 128},
        {"rope_parameters": DEFAULT["rope_parameters"] | {"partial_rotary_factor": 1.0}},
    ),
    "tied": ({"tie_word_embeddings": True}, {"tie_word_embeddings": False}),
}  # fmt: skip
BY_FAMILY = {
    "llama": LLAMA, "opt": OPT, "mistral": MISTRAL, "qwen2": QWEN2, "qwen3": QWEN3, "gemma": GEMMA,
    "gemma2": GEMMA2, "gemma3_text": GEMMA3, "olmo2": OLMO2, "olmo3": OLMO3, "smollm3": SMOLLM3,
    "granite": GRANITE, "phi3": PHI3,
}  # fmt: skip
