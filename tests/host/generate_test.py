"""Texts continued, scored and talked about, against `transformers` and PEFT in torch."""

import functools
import json
import re
import subprocess
import sys

import jax
import numpy as np
import peft
import pytest
import tiny
import torch
import transformers
from tokenizers import processors

from isara_jax import config
from isara_jax.formats import pretrained
from isara_jax.host import completion
from isara_jax.text import stops, tokens
from tests import environment

# From nothing to many tokens, with more than one byte a character, and what looks special.
PROMPTS = [
    "", "ab", " the", "x\nAnswer:y", "Question: é漢 ab?\n\n", "a\tb  c", "ion: aab" * 8,
    "Quest", "</s>ab</s>", "   ", "\n", "o.\n\nQuestion: 😀",
]  # fmt: skip
NEW, SLOTS = 20, 5
GREEDY = config.Sampling(temperature=0.0)
END = "<end>"  # a second token that ends texts, as Llama 3 has
FAMILIES = ("llama", "opt")


def torch_opt(vocab_size):
    """A random OPT in which every tensor matters."""
    torch.manual_seed(3)
    theirs = transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=vocab_size, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48,
            num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256, dropout=0.0,
            pad_token_id=0, bos_token_id=2, eos_token_id=2, attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            value.normal_(1.0 if "norm.weight" in name else 0.0, 0.05 if "tokens" in name else 0.3)
    return theirs


def real_tokenizer(kind, begin):
    """A tokenizer that begins texts with a special token, as LLaMA's and OPT's do."""
    tokenizer = tiny.TOKENIZERS[kind]()
    tokenizer.bos_token = begin
    tokenizer.add_special_tokens({"additional_special_tokens": [END]})
    ids = [(begin, tokenizer.convert_tokens_to_ids(begin))]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=ids
    )
    return tokenizer


class World:
    """A torch model, its tokenizer, the folder that holds both, and our reading of it."""

    def __init__(self, folder, theirs, tokenizer, ends=(tiny.EOS,), new=NEW):
        self.folder, self.theirs, self.tokenizer, self.new = folder, theirs, tokenizer, new
        self.ends = ends
        theirs.generation_config.eos_token_id = list(ends)
        theirs.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        self.base = pretrained.read_language_model(str(folder))
        self.writer = completion.load(self.base, "", "auto")
        self.complete = completion.Completer(self.writer, SLOTS, new, GREEDY, ())

    def rows(self, prompts):
        where = (completion.Prompt(prompt, "here") for prompt in prompts)
        return [completion.encode(self.base, prompt, self.new) for prompt in where]

    def answers(self, prompts, complete=None):
        rows = self.rows(prompts)
        columns = completion.capacity(rows, 256 - self.new)
        return (complete or self.complete)(rows, columns, jax.random.key(0))

    def expected(self, prompt, theirs=None):
        """HF's answer and the token that ended it; what spells nothing is not to be drawn."""
        ids = self.tokenizer(prompt)["input_ids"]
        given = torch.tensor([ids])
        spelled = self.base.vocabulary.bytes
        silent = [i for i, text in enumerate(spelled) if not text and i not in self.ends]
        out = (theirs or self.theirs).generate(
            input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=self.new,
            do_sample=False, suppress_tokens=silent, pad_token_id=0,
        )[0].tolist()  # fmt: skip
        end = out.pop() if out[-1] in self.ends else None
        before, text = (self.tokenizer.decode(x, skip_special_tokens=True) for x in (ids, out))
        assert text.startswith(before)
        reason = "length" if end is None else "stop"
        return completion.Answer(text[len(before) :], out[len(ids) :], reason), end


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The world of a family, made when first asked for."""

    @functools.cache
    def made(family):
        folder = tmp_path_factory.mktemp(family)
        if family == "opt":
            tokenizer = real_tokenizer("byte_level", "</s>")
            return World(folder, torch_opt(len(tokenizer) + 5), tokenizer)
        tokenizer = real_tokenizer("byte_fallback", "<s>")
        theirs = tiny.torch_llama(0, vocab_size=len(tokenizer) + 5)
        ends = [tiny.EOS, tokenizer.convert_tokens_to_ids(END)]
        spaces = [i for token, i in tokenizer.get_vocab().items() if token[0] == "▁"]
        bytes_ = tokenizer.convert_tokens_to_ids([f"<0x{b:02X}>" for b in range(128, 256)])
        with torch.no_grad():
            theirs.lm_head.weight[ends] *= 2
            # Answers that begin with a space, which a text's first token would lose.
            theirs.lm_head.weight[spaces] *= 1.3
            theirs.lm_head.weight[bytes_] = 0  # HF shows what is no UTF-8 in its own way
        return World(folder, theirs, tokenizer, ends)

    return made


def torch_log_probabilities(theirs, row):
    logits = torch.tensor(tiny.torch_logits(theirs, [row])[0]).double()
    return torch.log_softmax(logits, -1)[range(len(row) - 1), row[1:]].numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_equal_transformers(family, world):
    """Greedy text, tokens and reasons are those of HF's `generate`, for LLaMA and OPT."""
    w = world(family)
    assert w.rows(PROMPTS) == w.tokenizer(PROMPTS)["input_ids"]
    expected, ends = zip(*map(w.expected, PROMPTS), strict=True)
    assert w.answers(PROMPTS) == list(expected)
    # Each way of ending occurs, and a text that is not told by its first tokens.
    assert set(ends) == {None, *w.ends}
    assert max(len(set(answer.tokens)) for answer in expected) > 10
    if family == "llama":
        assert any(answer.text.startswith(" ") for answer in expected)
    assert w.answers(PROMPTS[:1] + PROMPTS[:-1]) == [expected[0], *expected[:-1]]
    assert w.complete.generate._cache_size() == 1  # other prompts, the same executable


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_equal_torch(family, world):
    """Scores are torch's log_softmax over the whole vocabulary, for any length and padding."""
    w = world(family)
    rng = np.random.default_rng(0)
    rows = w.rows(PROMPTS) + [rng.integers(0, len(w.tokenizer), 256).tolist()]
    found = completion.log_probabilities(w.writer, rows, 256, 3)
    for row, numbers in zip(rows, found, strict=True):
        assert numbers[0] is None
        assert len(numbers) == len(row)
        np.testing.assert_allclose(numbers[1:], torch_log_probabilities(w.theirs, row), atol=1e-4)


def test_adapter_equals_peft(world, tmp_path):
    """With a PEFT folder answers and scores are PEFT's, and other ones than the base model's."""
    w = world("llama")
    settings = peft.LoraConfig(
        r=3, lora_alpha=12, target_modules=["q_proj", "down_proj"], init_lora_weights=False
    )
    torch.manual_seed(0)
    copy = transformers.AutoModelForCausalLM.from_pretrained(w.folder, attn_implementation="eager")
    adapted = peft.get_peft_model(copy, settings).eval()
    adapted.save_pretrained(tmp_path)
    writer = completion.load(w.base, str(tmp_path), "float32")
    complete = completion.Completer(writer, SLOTS, NEW, GREEDY, ())
    expected = [w.expected(prompt, adapted)[0] for prompt in PROMPTS]
    assert w.answers(PROMPTS, complete) == expected
    base = w.answers(PROMPTS)
    assert sum(a != b for a, b in zip(base, expected, strict=True)) > len(PROMPTS) // 2
    row = w.rows(PROMPTS)[6]
    (found,) = completion.log_probabilities(writer, [row], 64, 1)
    np.testing.assert_allclose(found[1:], torch_log_probabilities(adapted, row), atol=1e-4)


def test_stop_strings_cut(world):
    """An answer ends before the first stop string, inside a token too, and says so."""
    w = world("llama")
    complete = completion.Completer(
        w.writer, SLOTS, NEW, GREEDY, tuple(map(stops.Stop, ("uest", "\n")))
    )
    whole, cut = w.answers(PROMPTS), 0
    # The first, with nothing before it, loses a space as text but not as tokens.
    for free, answer in list(zip(whole, w.answers(PROMPTS, complete), strict=True))[1:]:
        place = re.search("uest|\n", free.text)
        assert answer.text == (free.text[: place.start()] if place else free.text)
        assert answer.finish_reason == ("stop" if place else free.finish_reason)
        assert w.base.vocabulary.decode(answer.tokens) == answer.text
        cut += bool(place)
    assert 0 < cut < len(whole)


def scripted(tokenizer, script):
    """A LLaMA without memory, which follows each token of `script` with the next."""
    size = len(tokenizer)
    theirs = tiny.torch_llama(0, vocab_size=size, num_hidden_layers=1)
    with torch.no_grad():
        theirs.model.layers[0].self_attn.o_proj.weight.zero_()
        theirs.model.layers[0].mlp.down_proj.weight.zero_()
        theirs.model.norm.weight.fill_(1.0)
        seen = theirs.model.embed_tokens.weight[script[:-1]]
        states = seen / seen.square().mean(-1, keepdim=True).sqrt()
        theirs.lm_head.weight.zero_()
        theirs.lm_head.weight[script[1:]] = 20 * torch.linalg.pinv(states).T
    return theirs


def test_characters_of_several_tokens(tmp_path):
    """A character whose bytes are drawn one by one is one character; the text is HF's."""
    text = "é漢😀"
    tokenizer = real_tokenizer("byte_level", "<s>")
    script = tokenizer.encode(f"a{text}")[1:] + [tiny.EOS]
    assert len(script) == len(set(script)) == 1 + len(text.encode()) + 1
    w = World(tmp_path, scripted(tokenizer, script), tokenizer, new=12)
    (answer,) = w.answers(["a"])
    assert answer == w.expected("a")[0] == completion.Answer(text, script[1:-1], "stop")


# --- chat ----------------------------------------------------------------------------------------

PAIRS = [
    ("Is é 漢?", "ab."), ("aab " * 30, "the"), ("the ab?", "It is,\nand 😀."), (" ab", "ba" * 20),
    ("o?", "a"),
]  # fmt: skip


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
@pytest.mark.parametrize("room, fit", [(16, []), (200, [0, 2, 3, 4]), (4000, range(5))])
def test_questions_are_rendered(kind, room, fit):
    """A prompt is the template with whole demonstrations, as many as fit; its shape is fixed."""
    vocabulary = tiny.vocabulary(kind)
    talk = completion.Conversation(vocabulary, PAIRS, room)
    assert talk.capacity <= room
    assert talk.pairs == [PAIRS[i] for i in fit]
    ids = talk.prompt("ab?")
    text, tokenizer = tokens.render(talk.pairs, "ab?"), vocabulary.tokenizer
    assert ids == [*vocabulary.begin, *tokenizer.encode(text, add_special_tokens=False)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(ids) <= talk.capacity
    with pytest.raises(ValueError, match=r"question has \d+ tokens, \d+ fit"):
        talk.prompt("é?" * room)


# --- mistakes ------------------------------------------------------------------------------------

GOOD = b'{"prompt": "a", "id": 3}\n'
LINES = {
    "no JSON": (GOOD + b"prompt", ":2: malformed JSON at column 1"),
    "two objects": (b"\n" + GOOD[:-1] + GOOD, ":2: malformed JSON"),
    "no object": (GOOD + b'"text"\n', ':2: found .*an object; write {"prompt": "..."}'),
    "no prompt": (GOOD + b'{"text": "a"}\n', ":2: prompt: found null, a text is expected"),
    "a number": (GOOD + GOOD + b'{"prompt": 3}\n', ":3: prompt: found 3 .int., a text is expected"),
    "no UTF-8": (GOOD + b'{"prompt": "\xff"}\n', ":2: found the byte 0xff, which is no UTF-8"),
    "empty": (b"\n \n", ": no prompt in it"),
}


@pytest.mark.parametrize("case", LINES)
def test_bad_lines_are_named(case, tmp_path):
    """A file of prompts is read strictly: file and line of what is wrong."""
    content, message = LINES[case]
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path)) + message):
        completion.read_prompts(path)


def test_good_lines_are_read(tmp_path):
    """Prompts keep every character, and the line they stand on; blank lines are skipped."""
    texts = ["", " a\u2028b\r ", "é\n😀"]
    path = tmp_path / "prompts.jsonl"
    rows = [json.dumps({"prompt": text}, ensure_ascii=False) for text in texts]
    path.write_text("\ufeff" + "\r\n\r\n".join(rows), encoding="utf-8", newline="")
    expected = [(text, f"{path}:{2 * i + 1}") for i, text in enumerate(texts)]
    assert completion.read_prompts(path) == expected
    with pytest.raises(ValueError, match="nowhere.jsonl: cannot be read"):
        completion.read_prompts(tmp_path / "nowhere.jsonl")


def test_prompts_that_cannot_be_continued_are_named(world):
    """Too long, no text, or nothing to begin with: by its line, with the numbers."""
    base = world("opt").base
    prompt = completion.Prompt("ab" * 120, "prompts.jsonl:7")
    assert len(completion.encode(base, prompt, 256 - 121)) == 121
    with pytest.raises(ValueError, match="prompts.jsonl:7: .* 121 tokens.*=136 .* 256 positions"):
        completion.encode(base, prompt, 136)
    with pytest.raises(ValueError, match="prompts.jsonl:7: the prompt is no text"):
        completion.encode(base, prompt._replace(text="a\ud800"), 1)
    bundled, empty = pretrained.read_language_model("tiny_llama"), completion.Prompt("", "--prompt")
    tokenizer = bundled.vocabulary.tokenizer
    assert completion.encode(bundled, empty, 1) == tokenizer.encode("") == [1]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    assert tokenizer.encode("") == []
    assert completion.encode(bundled, empty, 1) == [1]  # there must be something to read
    tokenizer.bos_token = None
    with pytest.raises(ValueError, match="--prompt: the prompt is empty"):
        completion.encode(bundled, empty, 1)


# --- the command ---------------------------------------------------------------------------------


# torch is there for the tests alone: the command must do without it.
NO_TORCH = "import sys; sys.modules['torch'] = None\n"
RUN = NO_TORCH + "import runpy; runpy.run_module('isara_jax.generate', run_name='__main__')"


def command(tmp_path, *arguments, program=("-m", "isara_jax.generate"), given=""):
    out = subprocess.run(
        [sys.executable, *program, *arguments], input=given.encode(), capture_output=True,
        env=environment.of() | {"XDG_CACHE_HOME": str(tmp_path)},
    )  # fmt: skip
    return out.returncode, out.stdout.decode(), out.stderr.decode()


BATCHES = (
    NO_TORCH
    + """
import os
from isara_jax import generate
from isara_jax.host import completion
from isara_jax.shell import command
generate._BATCH = 2
call = completion.Completer.__call__
def counted(self, *args):
    os.write(1, b"batch\\n")
    assert completion._losses._cache_size() < 2
    answers = call(self, *args)
    assert self.generate._cache_size() == 1
    return answers
completion.Completer.__call__ = counted
command.run(generate.main)
"""
)


def test_command_writes_json_lines(tmp_path):
    """`--prompts --logprobs`: one JSON line an answer, in order, as soon as its batch is done."""
    texts = ["Question: What is 漢?\nAnswer:", "", "The train"]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    status, answers, said = command(
        tmp_path, "--model=tiny_llama", f"--prompts={path}", "--max_new_tokens=6", "--logprobs",
        "--slots=2", program=("-c", BATCHES),
    )  # fmt: skip
    assert (status, said) == (0, "")
    found = answers.removesuffix("\n").split("\n")
    assert [i for i, line in enumerate(found) if line == "batch"] == [0, 3]
    lines = [json.loads(line) for line in found if line != "batch"]
    assert [line["prompt"] for line in lines] == texts
    theirs = transformers.AutoModelForCausalLM.from_pretrained(pretrained.BUNDLED["tiny_llama"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(pretrained.BUNDLED["tiny_llama"])
    for text, line in zip(texts, lines, strict=True):
        ids = tokenizer(text)["input_ids"] or [1]
        new = theirs.generate(input_ids=torch.tensor([ids]), max_new_tokens=6, do_sample=False)
        assert line["prompt_tokens"] == ids
        assert ids + line["tokens"] == new[0].tolist()
        assert line["text"] == tokenizer.decode(line["tokens"])
        assert line["finish_reason"] == "length"
        numbers = line["prompt_logprobs"] + line["logprobs"]
        assert numbers[0] is None
        expected = torch_log_probabilities(theirs, ids + line["tokens"])
        np.testing.assert_allclose(numbers[1:], expected, atol=1e-4)


def test_chat_answers_stdin(tmp_path, world):
    """`--chat` answers line by line until an empty one, behind the demonstrations of a file."""
    seeds = tmp_path / "seeds.jsonl"
    pairs = [{"question": q, "answer": a} for q, a in (("Who?", "I."), ("long " * 900, "Cut."))]
    pairs.append({"question": "Where?", "answer": "Here."})
    seeds.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    status, answers, said = command(
        tmp_path, f"--model={world('opt').folder}", "--chat", f"--seeds={seeds}",
        "--max_new_tokens=8", "--temperature=1", "--stop=\n", program=("-c", RUN),
        given="Who are you?\n" + "too long" * 200 + "\nWho are you?\n\nNever?\n",
    )  # fmt: skip
    assert status == 0, said
    first, second = answers.removesuffix("\n").split("\n")
    assert first != second  # asked again, drawn again
    assert said.startswith("2 of 3 pairs fit and are shown\n")
    assert said.count("shorten it") == 1


MISTAKES = {
    ("--prompt=a", "--model=nowhere"): "'nowhere' is not a directory",
    ("--model=tiny_llama",): "one of --prompt, --prompts and --chat",
    ("--model=tiny_llama", "--prompt=a", "--chat"): "one of --prompt, --prompts and --chat",
    ("--model=tiny_llama", "--prompt=a", "--seeds=x.csv"): "--seeds .* --chat",
    ("--model=tiny_llama", "--chat", "--logprobs"): "--logprobs .* --chat",
    ("--model=tiny_llama", "--prompt=a", "--max_new_tokens=0"): "--logprobs would score",
    ("--model=tiny_llama", "--prompt=a", "--top_p=0"): r"--top_p=0.0: must lie in \(0, 1\]",
    ("--model=tiny_llama", "--prompt=a", "--stop="): "--stop is an empty string",
    ("--model=tiny_llama", "--prompt=a", "--max_new_tokens=512"): "--prompt: .*=512 .*512 pos",
    ("--model=tiny_llama", "--chat", "--max_new_tokens=512"): "=512 leaves no room",
    ("--model=tiny_llama", "--prompts=nowhere.jsonl"): "nowhere.jsonl: cannot be read",
    ("--model=tiny_llama", "--prompt=a", "--adapter=nowhere"): "nowhere/adapter_config.json",
    ("--model=tiny_llama", "--chat", "--seeds=nowhere.csv"): "nowhere.csv: no such file",
}
EACH = (
    NO_TORCH
    + """
import json
from absl import flags
from isara_jax import generate
for arguments in json.loads(sys.argv[1]):
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    flags.FLAGS(["generate", *arguments])
    try:
        generate.main([])
    except SystemExit as end:
        print(json.dumps(end.code))
"""
)


def test_mistakes_end_in_one_line(tmp_path):
    """Flags that do not go together, and files that are not there, are told in one line."""
    status, told, said = command(tmp_path, json.dumps(list(MISTAKES)), program=("-c", EACH))
    assert status == 0, said
    told = [json.loads(line) for line in told.splitlines()]
    for found, words in zip(told, MISTAKES.values(), strict=True):
        assert re.fullmatch(f"isara_jax: .*{words}.*", found), found
