"""Published networks by name, for plans and benchmarks: shapes without weights."""

from isara_jax.models.families import llama, opt
from isara_jax.models.network import DecoderConfig, LayerKind, Norm
from isara_jax.models.rope import Rope


def _llama(
    width: int, hidden: int, layers: int, heads: int, kv_heads: int = 0, vocabulary: int = 32000,
    length: int = 2048, theta: float = 10_000.0, *, tied: bool = False,
) -> DecoderConfig:  # fmt: skip
    return llama.network(
        vocab_size=vocabulary, width=width, hidden=hidden, n_layers=layers, n_heads=heads,
        n_kv_heads=kv_heads or heads, head_size=width // heads, max_length=length,
        kinds=(LayerKind(Rope(theta=theta)),), tied=tied,
    )  # fmt: skip


def _opt(width: int, layers: int, heads: int) -> DecoderConfig:
    return opt.network(
        vocab_size=50272, width=width, hidden=4 * width, n_layers=layers, n_heads=heads,
        n_kv_heads=heads, head_size=width // heads, max_length=2048,
    )  # fmt: skip


def _qwen3(
    width: int, hidden: int, layers: int, heads: int, *, tied: bool = False
) -> DecoderConfig:
    return DecoderConfig(
        family="qwen3", vocab_size=151936, width=width, hidden=hidden, n_layers=layers,
        n_heads=heads, n_kv_heads=8, head_size=128, max_length=40960, qk_norm="head",
        kinds=(LayerKind(Rope(theta=1_000_000.0)),), tied=tied,
    )  # fmt: skip


def _gemma3(
    width: int, hidden: int, layers: int, heads: int, kv_heads: int, window: int, length: int,
    stretched: float,
) -> DecoderConfig:  # fmt: skip
    windowed = LayerKind(Rope(), window)
    scaling = {"kind": "linear", "factor": stretched} if stretched > 1 else {}
    full = LayerKind(Rope(1_000_000.0, **scaling))
    return DecoderConfig(
        family="gemma3_text", vocab_size=262144 if stretched == 1 else 262208, width=width,
        hidden=hidden, n_layers=layers, n_heads=heads, n_kv_heads=kv_heads, head_size=256,
        max_length=length, norm=Norm(weight="one_plus"), norm_place="both", qk_norm="head",
        kinds=(*[windowed] * 5, full), activation="gelu_pytorch_tanh", attention_scale=256**-0.5,
        embedding_scale=width**0.5, tied=True,
    )  # fmt: skip


_YARN = Rope(
    500_000.0, "yarn", 8.0, original_max_position_embeddings=8192.0,
    attention_factor=1.2079441541679836,
)  # fmt: skip
NETWORKS: dict[str, DecoderConfig] = {
    "llama_58m": _llama(512, 1376, 8, 8),  # not published: what a CPU can be measured on
    "smollm2_135m": _llama(576, 1536, 30, 9, 3, 49152, 8192, 100_000.0, tied=True),
    "llama_7b": _llama(4096, 11008, 32, 32),
    "llama_13b": _llama(5120, 13824, 40, 40),
    "llama_30b": _llama(6656, 17920, 60, 52),
    "llama_65b": _llama(8192, 22016, 80, 64),
    "llama2_7b": _llama(4096, 11008, 32, 32, length=4096),
    "llama2_70b": _llama(8192, 28672, 80, 64, 8, length=4096),
    "llama3_8b": _llama(4096, 14336, 32, 32, 8, 128256, 8192, 500_000.0),
    "llama3_70b": _llama(8192, 28672, 80, 64, 8, 128256, 8192, 500_000.0),
    "mistral_7b": DecoderConfig(
        family="mistral", vocab_size=32000, width=4096, hidden=14336, n_layers=32, n_heads=32,
        n_kv_heads=8, head_size=128, max_length=32768, norm=Norm(eps=1e-5),
        kinds=(LayerKind(Rope(), 4096),),
    ),
    "qwen3_8b": _qwen3(4096, 12288, 36, 32),
    "gemma3_270m": _gemma3(640, 2048, 18, 4, 1, 512, 32768, 1.0),
    "gemma3_4b": _gemma3(2560, 10240, 34, 8, 4, 1024, 131072, 8.0),
    "olmo3_7b": DecoderConfig(
        family="olmo3", vocab_size=100278, width=4096, hidden=11008, n_layers=32, n_heads=32,
        n_kv_heads=32, head_size=128, max_length=65536, norm=Norm(weight="wide"),
        norm_place="behind", qk_norm="flat",
        kinds=(*[LayerKind(Rope(500_000.0), 4096)] * 3, LayerKind(_YARN)),
    ),
    "opt_1.3b": _opt(2048, 24, 32),
    "opt_2.7b": _opt(2560, 32, 32),
    "opt_6.7b": _opt(4096, 32, 32),
    "opt_13b": _opt(5120, 40, 40),
    "opt_30b": _opt(7168, 48, 56),
    "opt_66b": _opt(9216, 64, 72),
}  # fmt: skip
