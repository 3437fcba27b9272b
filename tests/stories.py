"""Converts karpathy's stories260K (llama2.c's own format) to a Hugging Face directory."""

import pathlib
import struct

import numpy as np
import safetensors.numpy
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from isara_jax.files import storage

DATA = pathlib.Path(__file__).parents[2] / "shared" / "data" / "stories260k"
_ORDER = ("embed", "att_norm", "q", "k", "v", "o", "ffn_norm", "gate", "down", "up", "norm")


def convert(folder):
    """Writes config.json, model.safetensors and tokenizer.json into `folder`; returns it."""
    raw = (DATA / "stories260K.bin").read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack("7i", raw[:28])
    size = dim // heads
    kv = kv_heads * size
    shapes = {
        "embed": (vocab, dim), "att_norm": (layers, dim), "q": (layers, dim, dim),
        "k": (layers, kv, dim), "v": (layers, kv, dim), "o": (layers, dim, dim),
        "ffn_norm": (layers, dim), "gate": (layers, hidden, dim), "down": (layers, dim, hidden),
        "up": (layers, hidden, dim), "norm": (dim,),
    }  # fmt: skip
    flat, at, read = np.frombuffer(raw[28:], np.float32), 0, {}
    for name in _ORDER:
        count = int(np.prod(shapes[name]))
        read[name], at = flat[at : at + count].reshape(shapes[name]), at + count

    def half_split(rows, n_heads):
        """llama2.c turns neighbouring rows of a head together, HF the two halves."""
        return rows.reshape(n_heads, size // 2, 2, dim).swapaxes(1, 2).reshape(rows.shape)

    tensors = {"model.embed_tokens.weight": read["embed"], "model.norm.weight": read["norm"]}
    for i in range(layers):
        block = f"model.layers.{i}"
        tensors |= {
            f"{block}.input_layernorm.weight": read["att_norm"][i],
            f"{block}.post_attention_layernorm.weight": read["ffn_norm"][i],
            f"{block}.self_attn.q_proj.weight": half_split(read["q"][i], heads),
            f"{block}.self_attn.k_proj.weight": half_split(read["k"][i], kv_heads),
            f"{block}.self_attn.v_proj.weight": read["v"][i],
            f"{block}.self_attn.o_proj.weight": read["o"][i],
            f"{block}.mlp.gate_proj.weight": read["gate"][i],
            f"{block}.mlp.down_proj.weight": read["down"][i],
            f"{block}.mlp.up_proj.weight": read["up"][i],
        }
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    storage.write_json(folder / "config.json", {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocab,
        "hidden_size": dim, "intermediate_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_act": "silu",
        "max_position_embeddings": length, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
        "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
    })  # fmt: skip
    _tokenizer(vocab).save(str(folder / "tokenizer.json"))
    storage.write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>",
    })  # fmt: skip
    return folder


def _tokenizer(vocab):
    raw, at, pieces = (DATA / "tok512.bin").read_bytes(), 4, []
    for _ in range(vocab):
        _, n = struct.unpack("fi", raw[at : at + 8])
        pieces.append(raw[at + 8 : at + 8 + n].decode())
        at += 8 + n
    pieces[:3] = ["<unk>", "<s>", "</s>"]
    pieces = [p if i < 259 else p.replace(" ", "▁") for i, p in enumerate(pieces)]
    ids = {piece: i for i, piece in enumerate(pieces)}
    # Pieces stand in the order of their scores: an earlier piece is an earlier merge.
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces[259:]
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    tokenizer = Tokenizer(
        models.BPE(vocab=ids, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in pieces[:3]])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer
