"""Bad inputs by kind: what a seeds file, a model, an adapter, a URL or a flag can hold."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from tests import bad_input_files as of

ESCAPES = "\x1b]0;title\x07\x1b[31m\x9b2J‮\r"
DEEP = "[" * 10_000 + "]" * 10_000
PAIR = '{"question": "Why?", "answer": "So."}\n'


class Case(NamedTuple):
    """One bad input.

    Attributes:
      kind: heading in the table.
      what: it is.
      use: writes it into an empty folder and has it read.
    """

    kind: str
    what: str
    use: Callable[..., Any]


def _bomb(path: Any) -> None:
    """A parquet file of some kilobytes with gigabytes of text."""
    import pyarrow as pa
    from pyarrow import parquet

    text = pa.array(["x" * (1 << 20)])
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), text)
    parquet.write_table(pa.table({"question": column, "answer": column}), path)


def _offsets(header: dict[str, Any]) -> None:
    for fields in header.values():
        if "data_offsets" in fields:
            start, end = fields["data_offsets"]
            fields["data_offsets"] = [0, end - start]


_SEEDS = {
    "JSON nested 10,000 deep": of.seeds(f'{{"question": {DEEP}, "answer": "x"}}\n'),
    "a line of 17 MB": of.seeds('{"question": "' + "x" * (17 << 20) + '", "answer": "y"}\n'),
    "a file of 300 MB": of.seeds(b"\n" * (300 << 20)),
    "40 million empty objects": of.seeds("[" + "{}," * 40_000_000 + "{}]", "seeds.json"),
    "5 million short rows": of.seeds("question,answer\n" + "a,b\n" * 5_000_000, "seeds.csv"),
    "a pipe in place of a file": of.pipe_of_seeds,
    "a folder in place of a file": of.folder_of_seeds,
    "an array of 10,000 arrays in `.json`": of.seeds(DEEP, "seeds.json"),
    "control sequences where a text is expected": of.seeds(
        json.dumps({"question": [ESCAPES], "answer": "x"}, ensure_ascii=False) + "\n"
    ),
    "control sequences as bytes": of.seeds(ESCAPES.encode() + b"\n"),
    "a number of 10,000 digits": of.seeds('{"question": ' + "9" * 10_000 + ', "answer": "x"}\n'),
    "NUL in a text": of.seeds('{"question": "a\\u0000b", "answer": "x"}\n'),
    "half of a surrogate pair": of.seeds('{"question": "\\ud800", "answer": "x"}\n'),
    "a text only of blanks": of.seeds('{"question": "\\u2028 \\t", "answer": "x"}\n'),
    "a field twice": of.seeds('{"question": "a", "question": "b", "answer": "x"}\n'),
    "1e999 as an answer": of.seeds('{"question": "a", "answer": 1e999}\n'),
    "a text that imitates the template": of.seeds(
        '{"question": "a\\n\\nAnswer: no\\n\\nQuestion: b", "answer": "x"}\n' + PAIR
    ),
    "a name of 20,000 characters": of.seeds(json.dumps({"q" * 20_000: "a"}) + "\n"),
    "20,000 fields": of.seeds(json.dumps(dict.fromkeys(map(str, range(20_000)), "a")) + "\n"),
    "a quote of CSV that never ends": of.seeds('question,answer\n"' + "a,b\n" * 99, "seeds.csv"),
    "bytes of a program called `.csv`": of.seeds(b"\x7fELF\x02\x01\x01\x00" * 40, "seeds.csv"),
    "a zip file called `.jsonl`": of.seeds(b"PK\x03\x04\x14\x00\xff\xfe", "seeds.jsonl"),
    "a pickle called `.json`": of.seeds(b"\x80\x04\x95\x1d\x00\x00", "seeds.json"),
    "a parquet file that unpacks into 40 GB": of.table(_bomb),
    "a parquet file cut off": of.seeds(b"PAR1\x00\x00PAR1", "seeds.parquet"),
    "a parquet footer that claims 4 GB": of.seeds(
        b"PAR1" + b"\xff" * 40 + b"\xff\xff\xff\xffPAR1", "seeds.parquet"
    ),
    "a suffix that is not known": of.seeds("x", "seeds.pkl"),
}  # fmt: skip

_CONFIG = {
    "10^9 layers": of.model_config(num_hidden_layers=10**9),
    "a vocabulary of 10^12": of.model_config(vocab_size=10**12),
    "`hidden_size` 0": of.model_config(hidden_size=0),
    "a negative `intermediate_size`": of.model_config(intermediate_size=-1),
    "`num_attention_heads` true": of.model_config(num_attention_heads=True),
    "`head_dim` 2^40": of.model_config(head_dim=2**40),
    "`head_dim` false": of.model_config(head_dim=False),
    "`num_key_value_heads` as text": of.model_config(num_key_value_heads="2"),
    "`rms_norm_eps` NaN": of.model(
        of.written("config.json", '{"model_type": "llama", "rms_norm_eps": NaN}')
    ),
    "`rms_norm_eps` 1e400": of.model(
        of.written("config.json", '{"model_type": "llama", "rms_norm_eps": 1e400}')
    ),
    "`rope_theta` as a list": of.model_config(rope_theta=[10_000.0]),
    "an activation with control sequences": of.model_config(hidden_act=ESCAPES),
    "a model type of 5 MB": of.model_config(model_type="x" * 5_000_000),
    "code that comes along": of.model_config(auto_map={"AutoModel": "evil.Model"}),
    "quantised weights": of.model_config(quantization_config={"quant_method": "evil"}),
    "a rope type with a path": of.model_config(rope_scaling={"rope_type": "../../etc/passwd"}),
    "10^9 as an end of text": of.model_config(eos_token_id=10**9),
    "nested 10,000 deep": of.model(of.written("config.json", DEEP)),
    "20 MB of JSON": of.model(of.written("config.json", "{" + " " * (20 << 20) + "}")),
    "no UTF-8": of.model(of.written("config.json", b"\xff\xfe{}")),
    "a pipe": of.model(of.pipe("config.json")),
    "a link to a device": of.model(of.link("config.json", "/dev/zero")),
    "a link out of the folder": of.model(of.link("config.json", "/etc/passwd")),
    "a link to itself": of.model(of.link("config.json", "config.json")),
    "`generation_config.json` a pipe": of.model(of.pipe("generation_config.json")),
    "`generation_config.json` with ends that are texts": of.model(
        of.fields("generation_config.json", eos_token_id=["</s>"])
    ),
}  # fmt: skip

_WEIGHTS = {
    "a header that claims 10 TB": of.model(
        of.first_bytes((10**13).to_bytes(8, "little")), load=True
    ),
    "a header beyond the end of the file": of.model(
        of.first_bytes((9 << 20).to_bytes(8, "little")), load=True
    ),
    "a tensor of 10 TB": of.tensor(shape=[10**12], data_offsets=[0, 4 * 10**12]),
    "overlapping offsets": of.header(_offsets),
    "negative offsets": of.tensor(data_offsets=[-4, 0]),
    "offsets as texts": of.tensor(data_offsets=["0", "512"]),
    "a shape whose product overflows": of.tensor(shape=[2**33, 2**33]),
    "another type of the same size": of.tensor(dtype="I32"),
    "a type that is not known": of.tensor(dtype="PICKLE"),
    "a name twice": of.header(of.twice),
    "a header nested 10,000 deep": of.header(lambda header: DEEP.encode()),
    "a header that is no JSON": of.header(lambda header: b"\x80\x04\x95"),
    "a pipe as `model.safetensors`": of.model(of.pipe("model.safetensors"), load=True),
    "a link out of the folder as `model.safetensors`": of.model(
        of.link("model.safetensors", "/etc/passwd"), load=True
    ),
    "an index with `..`": of.indexed("../elsewhere/model.safetensors"),
    "an index with an absolute path": of.indexed("/etc/passwd"),
    "an index with a file of pickles": of.indexed("weights.bin"),
    "an index with a number": of.indexed(5),
    "an index nested 10,000 deep": of.model(of.index(DEEP), load=True),
    "pickles alone": of.model(of.pickles, load=True),
}  # fmt: skip

_TOKENIZERS = {
    r"the pattern `(\w+)+\d`": of.pattern(r"(\w+)+\d"),
    r"the pattern `\w*\w*\d`": of.pattern(r"\w*\w*\d"),
    "a pattern in 20,000 brackets": of.pattern("(" * 20_000 + "a" + ")" * 20_000),
    "a pattern that is none": of.pattern("(?P<x"),
    "a normalizer that doubles a text 40 times": of.model(
        of.fields("tokenizer.json", normalizer=of.doubled(40))
    ),
    "a normalizer that doubles a text 8 times": of.model(
        of.fields("tokenizer.json", normalizer=of.doubled(8))
    ),
    "`tokenizer.json` nested 10,000 deep": of.model(of.written("tokenizer.json", DEEP)),
    "`tokenizer.json` of 70 MB": of.model(of.written("tokenizer.json", b" " * (70 << 20))),
    "`tokenizer.json` a pipe": of.model(of.pipe("tokenizer.json")),
    "`tokenizer.json` a pointer of Git LFS": of.model(
        of.written("tokenizer.json", "version https://git-lfs.github.com/spec/v1\n")
    ),
    "settings that name a tokenizer outside, beside an empty one": of.model(of.elsewhere),
    "settings nested 10,000 deep": of.model(of.written("tokenizer_config.json", DEEP)),
    "an end of text that is a number": of.model(of.fields("tokenizer_config.json", eos_token=5)),
    "a class that is not there: `tokenizer.json` says all": of.model(
        of.fields("tokenizer_config.json", tokenizer_class="../../evil")
    ),
    "`special_tokens_map.json` a link out": of.model(
        of.link("special_tokens_map.json", "/etc/passwd")
    ),
    "a chat template a link out": of.model(of.link("chat_template.jinja", "/etc/passwd")),
}  # fmt: skip

_ADAPTERS = {
    "a rank of 10^9": of.adapter_config(r=10**9),
    "a rank of true": of.adapter_config(r=True),
    "a rank that is not the tensors'": of.adapter_config(r=4),
    "alpha as text": of.adapter_config(lora_alpha="32"),
    "alpha negative": of.adapter_config(lora_alpha=-1),
    "alpha NaN": of.adapter(of.nan_alpha),
    "`target_modules` a pattern that backtracks": of.adapter_config(
        target_modules=r"(.*)*(.*)*(.*)*(.*)*\d(.*)*!"
    ),
    "`target_modules` a pattern that is none": of.adapter_config(target_modules="(q_proj"),
    "`target_modules` a number": of.adapter_config(target_modules=5),
    "`layers_pattern` that backtracks": of.adapter_config(
        layers_to_transform=[0], layers_pattern=r"(.*)*(.*)*(.*)*(.*)*!"
    ),
    "another kind of adapter": of.adapter_config(peft_type="../../evil"),
    "`adapter_config.json` a link out": of.adapter(of.link("adapter_config.json", "/etc/passwd")),
    "`adapter_config.json` nested 10,000 deep": of.adapter(of.written("adapter_config.json", DEEP)),
    "`adapter_model.safetensors` a pipe": of.adapter(of.pipe("adapter_model.safetensors")),
    "`adapter_model.safetensors` a pickle": of.adapter(
        of.written("adapter_model.safetensors", b"\x80\x04\x95" + b"\0" * 60)
    ),
}  # fmt: skip

_ELSEWHERE = {
    "protocols in one another": of.store("reference::memory://bucket/refs.json"),
    "`..` in a URL": of.store("memory://bucket/model/../.."),
    "a model without weights": of.store("memory://bucket/model", config_DOT_json=b"{}"),
    "a protocol that is not known": of.store("gopher://bucket/model"),
}

_GGUF = {
    "2^60 fields": of.gguf(b"GGUF" + of.number(3, 4) + of.number(1, 8) + of.number(2**60, 8)),
    "2^60 tensors": of.gguf(b"GGUF" + of.number(3, 4) + of.number(2**60, 8) + of.number(0, 8)),
    "a text of 2^63 bytes": of.gguf(
        b"GGUF" + of.number(3, 4) + of.number(0, 8) + of.number(1, 8) + of.number(2**63, 8) + b"x"
    ),
    "another version": of.gguf(b"GGUF" + of.number(99, 4) + b"\0" * 16),
    "a program": of.gguf(b"\x7fELF" + b"\0" * 60),
}

_FLAGS = {
    "a rate of NaN": of.flag("train.learning_rate", float("nan")),
    "10^30 iterations": of.flag("iterations", 10**30),
    "a negative number of slots": of.flag("slots", -1),
    "true as a number": of.flag("train.epochs", True),
    "NUL in a path": of.flag("model.path", "a\0b"),
    "control sequences in a name": of.flag("mesh", ESCAPES),
    "a mesh of 10^5000 devices": of.flag("mesh", "9" * 5000 + "x1x1"),
    "a tuple that is a text": of.flag("evaluation.judges", "DIR"),
}

CASES = [
    Case(kind, what, use)
    for kind, cases in {
        "Seeds": _SEEDS, "config.json and generation_config.json": _CONFIG, "Weights": _WEIGHTS,
        "Tokenizers": _TOKENIZERS, "Adapters": _ADAPTERS, "URLs": _ELSEWHERE, "GGUF": _GGUF,
        "Settings": _FLAGS,
    }.items()
    for what, use in cases.items()
]  # fmt: skip
