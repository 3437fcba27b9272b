"""Published networks by name, for plans and benchmarks: shapes without weights."""

from isara_jax.models.llama import LlamaConfig
from isara_jax.models.network import DecoderConfig
from isara_jax.models.opt import OptConfig
from isara_jax.models.rope import Rope


def _llama(
    width: int, hidden: int, layers: int, heads: int, kv_heads: int = 0, vocabulary: int = 32000,
    length: int = 2048, theta: float = 10_000.0,
) -> LlamaConfig:  # fmt: skip
    return LlamaConfig(
        vocab_size=vocabulary, width=width, hidden=hidden, n_layers=layers, n_heads=heads,
        n_kv_heads=kv_heads or heads, head_size=width // heads, max_length=length,
        rope=Rope(theta=theta),
    )  # fmt: skip


def _opt(width: int, layers: int, heads: int) -> OptConfig:
    return OptConfig(
        vocab_size=50272, width=width, hidden=4 * width, n_layers=layers, n_heads=heads,
        n_kv_heads=heads, head_size=width // heads, max_length=2048,
    )  # fmt: skip


NETWORKS: dict[str, DecoderConfig] = {
    "llama_58m": _llama(512, 1376, 8, 8),  # not published: what a CPU can be measured on
    "llama_7b": _llama(4096, 11008, 32, 32),
    "llama_13b": _llama(5120, 13824, 40, 40),
    "llama_30b": _llama(6656, 17920, 60, 52),
    "llama_65b": _llama(8192, 22016, 80, 64),
    "llama2_7b": _llama(4096, 11008, 32, 32, length=4096),
    "llama2_70b": _llama(8192, 28672, 80, 64, 8, length=4096),
    "llama3_8b": _llama(4096, 14336, 32, 32, 8, 128256, 8192, 500_000.0),
    "llama3_70b": _llama(8192, 28672, 80, 64, 8, 128256, 8192, 500_000.0),
    "opt_1.3b": _opt(2048, 24, 32),
    "opt_2.7b": _opt(2560, 32, 32),
    "opt_6.7b": _opt(4096, 32, 32),
    "opt_13b": _opt(5120, 40, 40),
    "opt_30b": _opt(7168, 48, 56),
    "opt_66b": _opt(9216, 64, 72),
}
