"""How texts begin and end for a model, by folders as they are published and as tools leave them."""

import functools
import pathlib
import re
import shutil
import tempfile

import pytest
import sentencepiece
import transformers

from isara_jax.devices import processes
from isara_jax.files import storage
from isara_jax.formats import pretrained
from isara_jax.host import forecast

HOME = tempfile.TemporaryDirectory()  # of what is made once
PIECES = 300
EMPTY = {"content": "", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
IM_END = {
    "id": 1536, "content": "<|im_end|>", "single_word": False, "lstrip": False, "rstrip": False,
    "normalized": False, "special": True,
}  # fmt: skip


@functools.cache
def sentencepiece_model():
    """A `tokenizer.model` like LLaMA's: <unk> 0, <s> 1, </s> 2, bytes, pieces."""
    lines = ["Question: an honest clerk, and why?", "Answer: a mirror in a window."] * 20
    prefix = pathlib.Path(HOME.name, "tokenizer")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(prefix), model_type="bpe",
        vocab_size=PIECES, byte_fallback=True, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    return prefix.with_suffix(".model")


class Folder:
    """A copy of a bundled model's folder, without its weights, and changes of its files."""

    def __init__(self, path, bundled="tiny_llama"):
        self.path = path
        skip = shutil.ignore_patterns("*.safetensors")
        shutil.copytree(pretrained.BUNDLED[bundled], path, ignore=skip)

    def change(self, name, **fields):
        path = self.path / name
        known = storage.read_json(path) if path.exists() else {}
        storage.write_json(path, known | fields)

    def write(self, name, fields):
        storage.write_json(self.path / name, fields)

    def takes_sentencepiece(self):
        """As LLaMA 1 and 2: `tokenizer.model`, and no other file of the tokenizer."""
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (self.path / name).unlink()
        shutil.copy(sentencepiece_model(), self.path)

    def takes_byte_pairs(self, first=("<s>", "<pad>", "</s>", "<unk>")):
        """As OPT: `vocab.json` with these in front, `merges.txt`, and no other file."""
        model = storage.read_json(self.path / "tokenizer.json")["model"]
        words = [w for w in model["vocab"] if w not in ("<unk>", "<s>", "</s>")]
        self.write("vocab.json", {w: i for i, w in enumerate((*first, *words))})
        merges = "\n".join(" ".join(pair) for pair in model["merges"])
        (self.path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
        self.change("config.json", vocab_size=len(words) + len(first))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (self.path / name).unlink()

    def adds_nothing(self):
        """As SmolLM2, GPT-2 and Qwen 2: texts are encoded without BOS."""
        self.change("tokenizer.json", post_processor=None)

    def read(self, bos="auto"):
        """BOS, EOS and ends."""
        vocabulary = pretrained.read(str(self.path), bos).vocabulary
        # What ends a text is never drawn from somebody's text, nor shown.
        names = vocabulary.tokenizer.convert_ids_to_tokens(list(vocabulary.ends))
        assert not set(vocabulary.plain(["".join(names)])[0]) & set(vocabulary.ends)
        assert not any(vocabulary.bytes[i] for i in vocabulary.ends)
        assert vocabulary.tokenizer.eos_token_id == vocabulary.eos
        return vocabulary.bos, vocabulary.eos, vocabulary.ends


@pytest.fixture
def llama(tmp_path):
    return Folder(tmp_path / "llama")


@pytest.fixture
def opt(tmp_path):
    return Folder(tmp_path / "opt", "tiny_opt")


@pytest.fixture
def said(monkeypatch):
    """What was said on stderr."""
    lines = []
    monkeypatch.setattr(processes.endings, "say", lines.append)
    processes.say_once.cache_clear()
    return lines


# --- ends ----------------------------------------------------------------------------------------


def test_config_tells_what_the_tokenizer_leaves_out(opt, said):
    """Galactica: the tokenizer's own files name no special tokens, `config.json` does."""
    opt.write("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    opt.write("special_tokens_map.json", {})
    assert transformers.AutoTokenizer.from_pretrained(opt.path).eos_token is None
    assert opt.read() == (1, 2, (2,))
    opt.change("config.json", eos_token_id=[2, 0])  # a list, as of Llama 3: the first is written
    assert opt.read()[1:] == (2, (0, 2))
    opt.change("config.json", eos_token_id=None)
    opt.write("generation_config.json", {"eos_token_id": 2})
    assert opt.read() == (1, 2, (2,))
    assert not said
    opt.write("generation_config.json", {})
    with pytest.raises(ValueError, match=r'no other file names .*; write .* "eos_token": "</s>"'):
        opt.read()


def test_the_tokenizers_end_is_taken_where_config_names_another(llama, said):
    """Old conversions of LLaMA 1 say 1 in `config.json`, which is BOS: said once."""
    llama.takes_sentencepiece()
    llama.change("config.json", bos_token_id=0, eos_token_id=1)
    for _ in range(2):
        assert llama.read() == (1, 2, (2,))
    (line,) = said
    assert "</s> (2), config.json with <s> (1)" in line
    assert 'write "eos_token_id": 2 (or [1, 2]' in line
    llama.write("generation_config.json", {"eos_token_id": 2})  # what the line says to write
    assert llama.read() == (1, 2, (2,))
    assert len(said) == 1


@pytest.mark.parametrize("special", [True, False])
def test_generation_config_settles_a_chat_fine_tune(llama, said, special):
    """<|im_end|> added as the last row: it is written, and the base model's end ends a text, too.

    Some tools add it, or what was there, as a token that is not special.
    """
    added = storage.read_json(llama.path / "tokenizer.json")["added_tokens"]
    every = [t | {"special": special} for t in (*added, IM_END)]
    llama.change("tokenizer.json", added_tokens=every)
    llama.change("tokenizer_config.json", eos_token="<|im_end|>")
    llama.change("config.json", vocab_size=1537)
    llama.write("generation_config.json", {"eos_token_id": [2, 1536]})
    assert llama.read() == (1, 1536, (2, 1536))
    assert not said
    llama.write("generation_config.json", {})
    assert llama.read() == (1, 1536, (1536,))
    assert "<|im_end|> (1536), config.json with </s> (2)" in said[0]


@pytest.mark.parametrize("where", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("name", ["LLaMATokenizer", "LlamaTokenizer"])
def test_empty_special_tokens_are_those_of_tokenizer_model(llama, said, where, name):
    """Old conversions name special tokens by an empty text, which no text has as its token."""
    llama.takes_sentencepiece()
    llama.change("config.json", bos_token_id=0, eos_token_id=1)
    llama.write("tokenizer_config.json", {"tokenizer_class": name})
    llama.change(where, bos_token="", eos_token=EMPTY, unk_token="")
    assert llama.read() == (1, 2, (2,))
    tokenizer = pretrained.read(str(llama.path)).vocabulary.tokenizer
    processor = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model()))
    text = "Question: why, 漢字?"
    assert tokenizer.encode(text, add_special_tokens=False) == processor.encode(text)
    assert tokenizer.unk_token_id == processor.unk_id()


def test_empty_special_tokens_without_tokenizer_model(llama):
    """They are looked for in `config.json`; where it does not say, the file to mend is named."""
    empty = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "")
    llama.change("tokenizer_config.json", **empty)
    assert llama.read() == (1, 2, (2,))
    llama.change("config.json", eos_token_id=None)
    with pytest.raises(ValueError, match="or an empty one, .* write it into tokenizer_config.json"):
        llama.read()


def test_what_a_class_makes_up_is_no_end(opt):
    """GPT-2's class adds its <|endoftext|> to any vocabulary; OPT has never read it."""
    opt.takes_byte_pairs()
    opt.change("config.json", bos_token_id=2, eos_token_id=2, pad_token_id=1)
    made_up = transformers.AutoTokenizer.from_pretrained(opt.path, tokenizer_type="gpt2")
    assert made_up.eos_token_id == 1537
    assert opt.read() == (2, 2, (2,))
    opt.write("tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    assert opt.read() == (2, 2, (2,))


def test_an_end_that_the_vocabulary_has_needs_no_file(opt):
    """GPT-2's own files name no special tokens: its class knows them."""
    opt.takes_byte_pairs(("<|endoftext|>",))
    opt.change("config.json", eos_token_id=0)
    opt.write("tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    assert opt.read()[1:] == (0, (0,))


@pytest.mark.parametrize("ends", [128009, [2, 128009], -1, True, "2", [2, None]])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_ends_that_are_no_tokens_are_named(llama, file, ends):
    """An end that the embedding has no row for is never drawn: it belongs to another model."""
    llama.change(file, eos_token_id=ends)
    said = f"{file}: eos_token_id is {re.escape(repr(ends))}; token ids below 1536"
    with pytest.raises(ValueError, match=said):
        llama.read()


def test_an_exported_tokenizer_says_what_was_found(llama, tmp_path):
    """Others, who read the tokenizer alone, end and spell texts as the run did."""
    llama.takes_sentencepiece()
    llama.change("config.json", bos_token_id=0, eos_token_id=1)
    llama.write("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "eos_token": ""})
    llama.write("special_tokens_map.json", {"bos_token": "", "unk_token": EMPTY})
    base, copy = pretrained.read(str(llama.path)), tmp_path / "copy"
    copy.mkdir()
    pretrained.copy_tokenizer(base, copy)
    theirs = transformers.AutoTokenizer.from_pretrained(copy)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id) == (1, 2, 0)
    assert theirs.encode("why?</s>") == base.vocabulary.tokenizer.encode("why?</s>")


# --- beginnings ----------------------------------------------------------------------------------


def test_texts_begin_as_the_tokenizer_begins_them(llama):
    """Byte-level: by what it puts first (Llama 3), or without (SmolLM2, GPT-2, Qwen 2)."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama.path)
    assert llama.read()[0] == tokenizer.encode("x")[0] == 1
    llama.adds_nothing()
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama.path)
    assert tokenizer.encode("x") == tokenizer.encode("x", add_special_tokens=False)
    assert llama.read()[0] is None
    assert llama.read("always")[0] == 1
    llama.change("tokenizer_config.json", add_bos_token=True)
    assert llama.read()[0] == 1
    assert llama.read("never")[0] is None


def test_sentencepiece_and_opt_keep_their_bos(llama, opt):
    """A lone `tokenizer.model` was trained with BOS, though transformers adds none; Yi says no."""
    llama.takes_sentencepiece()
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama.path)
    assert tokenizer.encode("x")[0] != tokenizer.bos_token_id
    assert llama.read()[0] == tokenizer.bos_token_id == 1
    llama.write("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})
    assert llama.read()[0] == 1
    llama.change("tokenizer_config.json", add_bos_token=False)
    assert llama.read()[0] is None
    opt.adds_nothing()
    assert opt.read()[0] == 1
    opt.change("tokenizer_config.json", add_bos_token=False)
    assert opt.read()[0] is None


def test_always_needs_a_bos(llama):
    """Qwen 2 has none: said, with what to do."""
    llama.adds_nothing()
    llama.change("tokenizer_config.json", bos_token=None)
    assert llama.read()[0] is None
    with pytest.raises(ValueError, match=r"no bos_token .*bos='always'.*; name one in tokenizer_"):
        llama.read("always")


def test_several_tokens_before_a_text_are_named(llama):
    """ChatGLM's kind is not computed by half."""
    fields = storage.read_json(llama.path / "tokenizer.json")["post_processor"]
    fields["single"] = [fields["single"][0], *fields["single"]]
    llama.change("tokenizer.json", post_processor=fields)
    with pytest.raises(ValueError, match=r"begins texts with <s> \(1\), <s> \(1\); one token"):
        llama.read()


def test_a_run_says_how_texts_begin_and_end(llama):
    """A wrong start or end costs a run; its first lines show them."""
    said = forecast._texts(pretrained.read(str(llama.path)).vocabulary)
    assert said == "begin with <s> (1), end with </s> (2)"
    llama.change("config.json", eos_token_id=[2, 0])
    said = forecast._texts(pretrained.read(str(llama.path), "never").vocabulary)
    assert said == "begin without BOS, end with </s> (2); <unk> (0), </s> (2) end what is drawn"


# --- the tokenizer itself ------------------------------------------------------------------------


def test_a_tokenizer_that_is_read_wrongly_is_no_fault_of_the_texts(llama, monkeypatch):
    """transformers before 5.22 reads a byte-level tokenizer.json by the name of its class."""
    model = storage.read_json(llama.path / "tokenizer.json")["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    wrong = transformers.LlamaTokenizer(vocab=model["vocab"], merges=merges)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: wrong)
    with pytest.raises(ValueError, match="reads it wrongly, as a LlamaTokenizer; upgrade: pip"):
        llama.read()
