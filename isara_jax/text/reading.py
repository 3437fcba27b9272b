"""The tokenizer of a folder, read from files that were looked at before.

transformers reads what a folder's files name, also outside of it (`fast_tokenizer_files`), and
hands them to native code. So it is shown another folder: with links to those files of `FILES` that
are ordinary, of a likely size and tried (`trial`), and with settings that name no file. Nothing
that comes with a model is run here: neither code, nor a chat's template (`text.chat`).
"""

import functools
import pathlib
from typing import Any

import tokenizers
import transformers

from isara_jax.files import confined, storage
from isara_jax.shell import terminal
from isara_jax.shell.terminal import quoted
from isara_jax.text import special_tokens, trial

_CONFIG, _SETTINGS = "config.json", "tokenizer_config.json"
_MOST_WORDS = 64 << 20  # bytes; Gemma 3's have 33 MB
# All that a tokenizer may consist of, and bytes that each may have.
FILES = {
    "tokenizer.json": _MOST_WORDS, "tokenizer.model": _MOST_WORDS,
    "vocab.json": _MOST_WORDS, "merges.txt": _MOST_WORDS,
    _SETTINGS: storage.MOST_JSON, "special_tokens_map.json": storage.MOST_JSON,
    "added_tokens.json": storage.MOST_JSON, "chat_template.jinja": storage.MOST_JSON,
    "chat_template.json": storage.MOST_JSON,
}  # fmt: skip
_TEMPLATES = "additional_chat_templates"  # a folder of them, by name
# The files that one is read from: any of these.
_KINDS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
_TRIED = ("tokenizer.json", "tokenizer.model")
# Of computing, and bytes of memory, that a trial takes at most: so many, and more for a larger
# file. Ten times what real ones take.
_SECONDS, _BYTES_A_SECOND = 10, 1 << 20
_MEMORY, _MEMORY_A_BYTE = 1 << 30, 64
# Settings by which transformers would read other files, or run code.
_NAMING = ("auto_map", "init_inputs", "fast_tokenizer_files")
_MOST_FIELDS = 100  # of a config.json, each tried: it has thirty
_PROBE = "Why so?\n\nBecause: 1"  # any tokenizer's text


def load(directory: pathlib.Path) -> transformers.PreTrainedTokenizerBase:
    """The directory's tokenizer; never runs code from it.

    Raises:
      ValueError: there is none, it cannot be read, or one of its files is not as it should be.
    """
    # Without its files, transformers may make a tokenizer of no words and say nothing.
    if not any(all((directory / name).exists() for name in names) for names in _KINDS):
        expected = "; ".join(" and ".join(names) for names in _KINDS)
        raise ValueError(f"{directory}: no tokenizer; one of these is expected: {expected}")
    check_files(directory)
    for name in _TRIED:
        if (directory / name).exists():
            _try(directory / name)
    with storage.scratch() as room:
        _furnish(room, directory)
        return _read(room, directory)


def names(directory: pathlib.Path) -> dict[str, int]:
    """What the directory's tokenizer may consist of: `FILES`, and more templates of chats.

    Raises:
      ValueError: their folder is a link, which may lead anywhere.
    """
    folder = directory / _TEMPLATES
    if folder.is_symlink():
        raise ValueError(f"{folder}: found a link, expected a folder; copy the folder there")
    more = sorted(path.name for path in folder.glob("*.jinja"))
    return FILES | {f"{_TEMPLATES}/{name}": storage.MOST_JSON for name in more}


def check_files(directory: pathlib.Path) -> None:
    """Raises `ValueError` where a file of a tokenizer is a wrong link, a device, or too large."""
    for name, most in names(directory).items():
        if storage.followed(directory, directory / name).exists():
            storage.ordinary(directory / name, most)


def _try(path: pathlib.Path) -> None:
    """Raises `ValueError` where a tokenizer cannot be read and used in bounded time and memory."""
    size = path.stat().st_size
    try:
        confined.run(
            pathlib.Path(trial.__file__), str(path.absolute()),
            seconds=_SECONDS + size // _BYTES_A_SECOND, n_bytes=_MEMORY + _MEMORY_A_BYTE * size,
        )  # fmt: skip
    except confined.RefusedError as error:
        raise ValueError(
            f"{path}: its tokenizer cannot be read ({error}); it is damaged, a pointer in place of "
            "a file, or made to do harm: get it again from a source that you trust"
        ) from error


def _furnish(room: pathlib.Path, directory: pathlib.Path) -> None:
    """Puts into an empty folder what transformers may read."""
    for name in (_CONFIG, *names(directory)):
        path = directory / name
        if not path.exists():
            continue
        if name == _SETTINGS:
            fields = storage.read_json(path)
            kept = {k: v for k, v in fields.items() if k not in _NAMING and not _names_file(k)}
            storage.write_json(room / name, kept)
        else:
            (room / name).parent.mkdir(exist_ok=True)
            (room / name).symlink_to(path.resolve())


def _names_file(field: str) -> bool:
    return field.endswith("_file")


def _read(room: pathlib.Path, directory: pathlib.Path) -> transformers.PreTrainedTokenizerBase:
    """What transformers makes of the room, which is called by the folder it is of."""
    read = functools.partial(
        transformers.AutoTokenizer.from_pretrained, room, local_files_only=True,
        trust_remote_code=False,
    )  # fmt: skip
    try:
        left_out = special_tokens.of_empty(directory)
        tokenizer = read(**left_out)
        if made_up := special_tokens.made_up(tokenizer, directory):
            left_out |= made_up
            tokenizer = read(**left_out)
        special_tokens.complete(tokenizer, directory, left_out)
        tokenizer.name_or_path = str(directory)
        said = tokenizer.decode(tokenizer.encode(_PROBE, add_special_tokens=False)).strip()
    except Exception as error:  # the Rust library raises plain `Exception`
        if refused := _refused_config(directory / _CONFIG):
            raise ValueError(refused) from error
        raise ValueError(
            f"{directory}: its tokenizer cannot be read; a file may be damaged, or a pointer in "
            f"place of one: download it again ({terminal.line(str(error))[:300]})"
        ) from error
    if said != _PROBE:
        _check_reading(directory / "tokenizer.json", tokenizer)
    return tokenizer


def _refused_config(path: pathlib.Path) -> str:
    """What transformers, which reads a config.json with the tokenizer, refuses in it; or nothing.

    Not each of its errors names the field: that is the one without which it reads the others.
    """

    def error(fields: dict[str, Any]) -> str:
        try:
            transformers.AutoConfig.for_model(**fields)
        except Exception as error:
            return terminal.line(str(error))[:300]
        return ""

    fields = storage.read_json(path) if path.exists() else {}
    if fields.get("model_type") not in transformers.CONFIG_MAPPING or not (said := error(fields)):
        return ""
    others = [name for name in fields if name != "model_type"][:_MOST_FIELDS]
    alone = [n for n in others if not error({k: v for k, v in fields.items() if k != n})]
    if not alone:
        return f"{path}: transformers cannot read several fields ({said}); mend or remove them"
    return (
        f"{path}: {alone[0]} is {quoted(fields[alone[0]])}; transformers cannot read it "
        f"({said}): mend or remove it"
    )


def _check_reading(path: pathlib.Path, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    """Raises `ValueError` where transformers takes a `tokenizer.json` for one of another kind.

    Before 5.22 it did so with byte-level ones whose class is called LlamaTokenizer(Fast).
    """
    if not path.exists():
        return
    alone = tokenizers.Tokenizer.from_file(str(path))
    if alone.decode(alone.encode(_PROBE, add_special_tokens=False).ids).strip() == _PROBE:
        raise ValueError(
            f"{path}: transformers {transformers.__version__} reads it wrongly, as a "
            f"{type(tokenizer).__name__}; upgrade: pip install --upgrade transformers (5.22 or "
            'newer), or write "tokenizer_class": "PreTrainedTokenizerFast" into '
            "tokenizer_config.json"
        )
