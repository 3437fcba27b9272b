"""Files and settings changed at random: used as they were meant, or refused in one line.

`pytest tests/hostile_test.py --hypothesis-profile=long` looks for more, and elsewhere each time.
"""

import copy
import dataclasses
import json
import os
import pathlib
import shutil
import tempfile

import jax
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from isara_jax import config
from isara_jax.formats import adapters, weights
from isara_jax.models import families, lora
from isara_jax.models.families import llama
from isara_jax.shell import endings
from isara_jax.tasks import files
from isara_jax.text import reading, tokens

NETWORK = llama.network(
    vocab_size=24, width=8, hidden=8, n_layers=2, n_heads=2, n_kv_heads=2, head_size=4,
    max_length=32,
)  # fmt: skip
NASTY = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=8),
    st.sampled_from([
        2**31 - 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 1e308, "", "\0", "\x1b[2J", "‮", "\ud800",
        "../../etc/passwd", "/dev/zero", "x" * 5000, "(a+)+$", r"(\w+)+\d", "{{ 7 * 7 }}",
        [], {}, [[]], [0], [-1], [10**20], ["q_proj"], {"type": "x"}, [None] * 50,
    ]),
)  # fmt: skip


def one_line(error: Exception, folder: pathlib.Path) -> str:
    """The sentence that a command says of an error; it must be no bug of ours."""
    try:
        with config.user_errors():
            raise error
    except Exception as known:
        sentence, status = endings.told(known)
    assert status == endings.MISTAKE, sentence
    assert "\n" not in sentence and len(sentence) < 2100
    assert not any(c < " " or "\x7f" <= c <= "\x9f" for c in sentence)
    return sentence.replace(str(folder), "")


def places(value, path=()):
    """All places in a JSON value."""
    yield path
    if isinstance(value, (dict, list)):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(one, (*path, key))


def changed(value, data):
    """A copy in which one place holds something else, or is gone."""
    value = copy.deepcopy(value)
    path = data.draw(st.sampled_from([*places(value)][1:]))
    node = value
    for key in path[:-1]:
        node = node[key]
    if data.draw(st.integers(0, 4)) == 0:
        del node[path[-1]]
    else:
        node[path[-1]] = data.draw(NASTY)
    return value


def spoiled(content: bytes, data) -> bytes:
    """Bytes of which some are other ones, or missing, or twice there."""
    start = data.draw(st.integers(0, len(content)))
    end = min(len(content), start + data.draw(st.integers(0, 12)))
    middle = data.draw(st.one_of(st.binary(max_size=12), st.just(content[start:end] * 2)))
    return content[:start] + middle + content[end:]


# --- seeds ---------------------------------------------------------------------------------------

PAIRS = [{"question": f"What is {i}, é?", "answer": f'It is "{i}".'} for i in range(4)]
CHATS = [
    {"messages": [{"role": r, "content": f"{r} {i}"} for r in ("user", "assistant")]}
    for i in range(3)
]
SEEDS = {
    ".jsonl": "".join(json.dumps(pair) + "\n" for pair in PAIRS),
    ".json": json.dumps({"data": CHATS}),
    ".csv": 'question,answer\n"a, b",c\nd,"e ""f"""\n',
    ".tsv": "instruction\tinput\toutput\na\tb\tc\nd\t\te\n",
}


@given(st.sampled_from([*SEEDS]), st.data())
def test_any_seeds_file_is_pairs_or_a_line(suffix, data):
    """Bytes of somebody's file in a traceback, a crash, or texts that training cannot use."""
    content = data.draw(
        st.one_of(st.binary(max_size=60), st.builds(lambda: spoiled(SEEDS[suffix].encode(), data)))
    )
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / f"seeds{suffix}"
        path.write_bytes(content)
        try:
            found = files.read_seeds(path)
        except files.SeedError as error:
            assert one_line(error, folder).startswith(f"/seeds{suffix}")
            return
    assert len(found.pairs) >= files.MINIMUM
    assert all(
        text.strip() and "\0" not in text
        for pair in found.pairs
        for text in (pair.question, pair.answer)
    )


@given(st.sampled_from([".jsonl", ".json"]), st.data())
def test_any_values_in_seeds_are_pairs_or_a_line(suffix, data):
    """A value of another kind where a text is expected."""
    rows = changed(data.draw(st.sampled_from([PAIRS, CHATS])), data)
    text = json.dumps(rows) if suffix == ".json" else "".join(json.dumps(r) + "\n" for r in rows)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / f"seeds{suffix}"
        path.write_text(text)
        try:
            assert len(files.read_seeds(path).pairs) >= files.MINIMUM
        except files.SeedError as error:
            assert one_line(error, folder).startswith(f"/seeds{suffix}")


# --- settings ------------------------------------------------------------------------------------


def fields(cls=config.Config, prefix=""):
    for field in dataclasses.fields(cls):
        yield f"{prefix}{field.name}"
        if dataclasses.is_dataclass(field.default):
            yield from fields(type(field.default), f"{prefix}{field.name}.")


@given(st.sampled_from([*fields()]), NASTY)
def test_any_value_of_a_field_is_resolved_or_refused(name, value):
    """A value that passes the check and fails in the midst of a run."""
    values = config._as_dict(config.Config()).to_dict()
    *groups, last = name.split(".")
    node = values
    for group in groups:
        node = node[group]
    node[last] = value
    try:
        resolved = config._resolve(config.Config, values, "config")
        config._validate(resolved)
    except config.ConfigError as error:
        assert "config" in one_line(error, pathlib.Path())
        return
    hash(resolved)
    assert config.to_dict(resolved)


# --- models and adapters -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with weights, the network's module, and its parameters."""
    folder = tmp_path_factory.mktemp("model")
    module = families.build(NETWORK)
    rng = np.random.default_rng(0)
    shapes = weights.abstract_params(module)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    weights.save(folder, NETWORK, params)
    return folder, module, params


def header_of(content: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header: bytes, rest: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + rest


def other_header(content: bytes, data) -> bytes:
    """A safetensors file of which one thing in the header is another."""
    header, rest = header_of(content)
    text = json.dumps(header).encode()
    kind = data.draw(st.sampled_from(["value", "bytes", "length", "twice"]))
    if kind == "value":
        return with_header(json.dumps(changed(header, data)).encode(), rest)
    if kind == "twice":
        name = data.draw(st.sampled_from([*header]))
        return with_header(text[:-1] + f",{json.dumps({name: header[name]})[1:]}".encode(), rest)
    if kind == "length":
        length = data.draw(st.one_of(st.integers(0, 2**64 - 1), st.integers(0, len(content) + 9)))
        return length.to_bytes(8, "little") + text + rest
    return with_header(spoiled(text, data), rest)


@given(data=st.data())
def test_any_header_of_weights_is_the_same_tensors_or_a_line(model, data):
    """Bytes of elsewhere, or of another tensor, taken for a tensor's."""
    folder, module, params = model
    with tempfile.TemporaryDirectory() as other:
        content = other_header((folder / "model.safetensors").read_bytes(), data)
        (pathlib.Path(other) / "model.safetensors").write_bytes(content)
        try:
            loaded = weights.load(pathlib.Path(other), module, tiny.mesh())
        except ValueError as error:
            one_line(error, other)
            return
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter's folder, and its tensors."""
    folder, settings = tmp_path_factory.mktemp("adapter"), config.Lora(rank=2)
    fresh = jax.device_get(lora.init(NETWORK, settings, jax.random.key(0)))
    adapters.save(folder, NETWORK, fresh, settings, "base")
    return folder, fresh


@given(data=st.data())
def test_any_adapter_is_the_same_or_a_line(adapter, data):
    """An adapter of another size or kind that is trained on."""
    folder, tensors = adapter
    with tempfile.TemporaryDirectory() as other:
        place = pathlib.Path(shutil.copytree(folder, other, dirs_exist_ok=True))
        if data.draw(st.booleans()):
            path = place / "adapter_model.safetensors"
            path.write_bytes(other_header(path.read_bytes(), data))
        else:
            path = place / "adapter_config.json"
            path.write_text(json.dumps(changed(json.loads(path.read_text()), data)))
        try:
            loaded, _ = adapters.load(place, NETWORK)
        except ValueError as error:
            one_line(error, other)
            return
    jax.tree.map(np.testing.assert_array_equal, loaded, tensors)


# --- tokenizers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.byte_level_tokenizer().save_pretrained(folder)
    return folder


@given(data=st.data())
def test_any_tokenizer_is_read_or_a_line(tokenizer, data):
    """A tokenizer's file that ends the process, takes hours, or reads another file."""
    with tempfile.TemporaryDirectory() as other:
        place = pathlib.Path(shutil.copytree(tokenizer, other, dirs_exist_ok=True))
        path = place / data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
        if data.draw(st.integers(0, 2)):
            path.write_text(json.dumps(changed(json.loads(path.read_text()), data)))
        else:
            path.write_bytes(spoiled(path.read_bytes(), data))
        try:
            found = tokens.Vocabulary(reading.load(place), 4096, os.fspath(place))
            found.plain(["Question: x\nAnswer: </s> é\n\n"])
        except ValueError as error:
            one_line(error, other)
