"""Exported folders, as PEFT, transformers and the hub's own library read them."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import huggingface_hub
import jax
import numpy as np
import peft
import pytest
import safetensors
import safetensors.torch
import tiny
import torch
import transformers
import yaml

from isara_jax import config
from isara_jax.files import storage
from isara_jax.formats import adapters, pretrained, weights
from isara_jax.host import results, setup
from isara_jax.host.executables import Executables
from isara_jax.models import lora
from isara_jax.publish import card, hub
from tests import environment
from tests.method.iteration_test import small
from tests.report.report_test import fake

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = config.Lora(rank=4, alpha=24.0)
LORA = {"train__lora__rank": SETTINGS.rank, "train__lora__alpha": SETTINGS.alpha}
# As opt-350m: norms behind, narrow embeddings.
OPT = {"max_position_embeddings": 256, "do_layer_norm_before": False, "word_embed_proj_dim": 16}
IDS = np.random.default_rng(0).integers(3, 320, (2, 20))
NEW = 24


def tiny_base(folder, family="llama", dtype=torch.float32, **changed):
    """A base model on disk, as `transformers` saves it."""
    tiny.TORCH[family](**changed).to(dtype).save_pretrained(folder)
    tiny.byte_level_tokenizer().save_pretrained(folder)
    return folder


def random_adapter(network, settings=SETTINGS):
    """An adapter whose b is not zero, as after some training."""
    rng = np.random.default_rng(0)
    fresh = lora.init(network, settings, jax.random.key(0))
    return jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32), fresh)


def finished(workdir, base, trainable, **changes):
    """The folder of a run that has ended, written by the run's own export, without the run."""
    c = config.resolve(small(base, **changes))
    found = pretrained.read_language_model(str(base))
    storage.write_json(workdir / "config.json", config.to_dict(c) | {"data": "0123"})
    results.export(workdir, found, c, trainable)
    storage.write_json(workdir / "summary.json", fake())  # last, as in a run
    return workdir


def network_of(base):
    return weights.load_config(base)


@dataclasses.dataclass
class Exported:
    """A run in both formats, and what all readers must compute."""

    base: pathlib.Path
    workdir: pathlib.Path
    peft: pathlib.Path
    merged: pathlib.Path

    def __post_init__(self):
        self.model, self.params = tiny.load(self.base)
        self.adapter, self.settings = adapters.load(self.workdir / "adapter", self.model.config)
        self.variables = lora.variables(self.params, self.adapter, config.Train(lora=self.settings))
        self.everything = jax.jit(lambda v, ids: self.model.apply(v, ids, method="everything"))

    def torch_base(self):
        return transformers.AutoModelForCausalLM.from_pretrained(self.base).eval()

    def torch_peft(self):
        return peft.PeftModel.from_pretrained(self.torch_base(), self.peft).eval()

    def torch_merged(self):
        return transformers.AutoModelForCausalLM.from_pretrained(self.merged).eval()

    def greedy(self, prompt):
        """Our continuation of token ids."""
        row = np.zeros((1, len(prompt) + NEW), np.int32)
        row[0, : len(prompt)] = prompt
        for at in range(len(prompt), row.size):
            row[0, at] = np.argmax(self.everything(self.variables, row)[0, at - 1])
        return row[0].tolist()


@pytest.fixture(scope="module")
def exported(random_model, tmp_path_factory):
    """A LLaMA and an OPT, each exported both ways."""
    folder = tmp_path_factory.mktemp("exported")
    bases = {"llama": random_model, "opt": tiny_base(folder / "opt_base", "opt", **OPT)}
    result = {}
    for family, base in bases.items():
        workdir = folder / f"{family}_run"
        finished(workdir, base, random_adapter(network_of(base)), **LORA)
        outputs = [folder / f"{family}_{form}" for form in ("peft", "merged")]
        for form, output in zip(("peft", "merged"), outputs, strict=True):
            hub.export(workdir, form, output)
        result[family] = Exported(base, workdir, *outputs)
    return result


def torch_greedy(model, prompt):
    model.generation_config.eos_token_id = None
    found = model.generate(
        torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, pad_token_id=0
    )
    return found[0].tolist()


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_peft_computes_the_same(exported, family):
    """PeftModel.from_pretrained takes the folder as it is: same logits as here."""
    e = exported[family]
    before, after = tiny.torch_logits(e.torch_base(), IDS), tiny.torch_logits(e.torch_peft(), IDS)
    ours = np.asarray(e.everything(e.variables, IDS))
    scale = np.abs(after).max()
    np.testing.assert_allclose(ours, after, atol=1e-4 * scale)
    assert np.abs(after - before).max() > 0.05 * scale
    auto = peft.AutoPeftModelForCausalLM.from_pretrained(e.peft).eval()  # finds the base itself
    np.testing.assert_array_equal(tiny.torch_logits(auto, IDS), after)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_merged_writes_the_same_text(exported, family):
    """transformers alone, PEFT, PEFT merged by itself, and this package agree."""
    e = exported[family]
    merged, adapted = e.torch_merged(), e.torch_peft()
    tokenizer = transformers.AutoTokenizer.from_pretrained(e.merged)
    prompt = tokenizer("Question: the bad cab?\nAnswer:", add_special_tokens=False).input_ids
    ours = e.greedy(prompt)
    assert torch_greedy(merged, prompt) == torch_greedy(adapted, prompt) == ours
    assert len(set(ours[-NEW:])) > 2  # a text, not one token again and again
    theirs = adapted.merge_and_unload()
    a, b = tiny.torch_logits(merged, IDS), tiny.torch_logits(theirs, IDS)
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    expected, found = theirs.state_dict(), merged.state_dict()
    assert set(expected) == set(found)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_importing_back_gives_the_same_bits(exported, family):
    """Nothing is lost on the way out and in again, in either format."""
    e = exported[family]
    again, settings = adapters.load(e.peft, e.model.config)
    assert dataclasses.astuple(settings) == dataclasses.astuple(e.settings)
    same = jax.tree.map(np.array_equal, again, e.adapter)
    assert jax.tree.all(same) and settings.rank == SETTINGS.rank
    model, params = tiny.load(e.merged)
    assert model.config == e.model.config
    merged = weights.flatten(lora.merge(e.params, e.adapter, e.settings))
    read = weights.flatten(params)
    assert set(read) == set(merged)
    for path, value in merged.items():
        np.testing.assert_array_equal(np.asarray(read[path]), np.asarray(value), err_msg=path)
    assert sum(isinstance(value, lora.Merged) for value in merged.values()) == len(
        lora.target_shapes(model.config, SETTINGS)
    )


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_tokenizer_is_the_base_models(exported, family):
    """Beside either format: the same ids and special tokens, with and without a config.json."""
    e, text = exported[family], "Question: é漢 🙂  ab\n\nthe </s>"
    base = transformers.AutoTokenizer.from_pretrained(e.base)
    for folder in (e.peft, e.merged):
        found = transformers.AutoTokenizer.from_pretrained(folder)
        assert type(found) is type(base) and found(text).input_ids == base(text).input_ids
        assert found.special_tokens_map == base.special_tokens_map
        assert found.backend_tokenizer.to_str() == base.backend_tokenizer.to_str()


def test_a_tokenizer_whose_class_only_the_model_tells(tmp_path):
    """Old OPT folders name no class; an adapter's folder has no model that would imply it."""
    base = tiny_base(tmp_path / "base", "opt", **OPT)
    fields = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "</s>"}
    storage.write_json(base / "tokenizer_config.json", fields)
    (tmp_path / "copy").mkdir()
    pretrained.copy_tokenizer(pretrained.read(str(base)), tmp_path / "copy")
    ours, theirs = (
        transformers.AutoTokenizer.from_pretrained(p) for p in (tmp_path / "copy", base)
    )
    assert type(ours) is type(theirs) is transformers.GPT2Tokenizer
    assert ours("the ab? é").input_ids == theirs("the ab? é").input_ids
    assert ours.special_tokens_map == theirs.special_tokens_map


def headers(folder):
    """The stored type of each tensor of a folder."""
    with safetensors.safe_open(folder / "model.safetensors", framework="numpy") as file:
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights_are_rounded_once(dtype, tmp_path):
    """Files and config.json in the base checkpoint's type, the sum rounded from full precision."""
    narrow = getattr(torch, dtype)
    base = tiny_base(tmp_path / "base", dtype=narrow)
    fields = storage.read_json(base / "config.json") | {"torch_dtype": "float32"}
    storage.write_json(base / "config.json", fields | {"dtype": "float32"})  # not so
    storage.write_json(base / "generation_config.json", {"max_length": 77, "eos_token_id": 2})
    adapter = random_adapter(network_of(base))
    workdir = finished(tmp_path / "run", base, adapter, **LORA)
    hub.export(workdir, "merged", tmp_path / "out")
    assert set(headers(tmp_path / "out").values()) == {{"bfloat16": "BF16"}.get(dtype, "F16")}
    written = storage.read_json(tmp_path / "out" / "config.json")
    assert written["torch_dtype"] == written["dtype"] == dtype
    assert written == fields | {"torch_dtype": dtype, "dtype": dtype}  # and nothing else changed
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["max_length"] == 77
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.dtype == narrow
    before, after = (
        safetensors.torch.load_file(p / "model.safetensors") for p in (base, tmp_path / "out")
    )
    name = "model.layers.1.mlp.down_proj.weight"
    a, b = (torch.tensor(np.asarray(adapter["layers_1"]["mlp"]["down"][m])).double() for m in "ab")
    exact = before[name].double() + SETTINGS.alpha / SETTINGS.rank * (a @ b).T
    assert (after[name] == exact.to(narrow)).double().mean() > 0.999
    other = "model.layers.1.input_layernorm.weight"
    assert torch.equal(after[other], before[other])


def test_several_types_become_the_one_that_holds_them(tmp_path):
    """Norms in f32 among bf16 would be rounded in a bf16 file; old files' RoPE tables are none."""
    base = tiny_base(tmp_path / "base", dtype=torch.bfloat16)
    tensors = safetensors.torch.load_file(base / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    safetensors.torch.save_file(tensors, base / "model.safetensors", {"format": "pt"})
    assert pretrained.stored_dtype(base) == "bfloat16"
    # Others' tensors do not count: an adapter's, another format's, a shard left over.
    for name in ("adapter_model", "consolidated", "model-00001-of-00002"):
        safetensors.torch.save_file({"x": torch.ones(4)}, base / f"{name}.safetensors")
    assert pretrained.stored_dtype(base) == "bfloat16"
    tensors["model.norm.weight"] = torch.full((32,), 1.0009765)
    safetensors.torch.save_file(tensors, base / "model.safetensors", {"format": "pt"})
    workdir = finished(tmp_path / "run", base, random_adapter(network_of(base)), **LORA)
    hub.export(workdir, "merged", tmp_path / "out")
    assert set(headers(tmp_path / "out").values()) == {"F32"}
    assert storage.read_json(tmp_path / "out" / "config.json")["dtype"] == "float32"
    written = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["model.norm.weight"], tensors["model.norm.weight"])


def test_full_fine_tuning_has_one_format(tmp_path):
    """A run of all weights: its model/ is the truth in the base's type; there is no adapter."""
    base = tiny_base(tmp_path / "base", dtype=torch.bfloat16)
    _, params = tiny.load(base)
    tuned = jax.tree.map(lambda x: x + 0.01, params)
    for _ in range(2):  # the second time as after a stop during the baselines
        workdir = finished(tmp_path / "run", base, tuned, train__trainable="full")
    assert [p.name for p in workdir.iterdir() if p.name.startswith(".")] == []
    hub.export(workdir, "merged", tmp_path / "out")
    for folder in (workdir / "model", tmp_path / "out"):
        assert storage.read_json(folder / "config.json")["dtype"] == "bfloat16"
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        assert tokenizer("the").input_ids == tiny.byte_level_tokenizer()("the").input_ids
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        for name, value in theirs.state_dict().items():
            before = safetensors.torch.load_file(base / "model.safetensors")[name]
            assert value.dtype == torch.bfloat16
            assert torch.equal(value, (before.float() + 0.01).bfloat16()), name
    with pytest.raises(config.UserError, match="use --format=merged"):
        hub.export(workdir, "peft", tmp_path / "peft")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| trained | all weights |" in text and "LoRA" not in text


def front_matter(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_the_card_says_what_was_measured(exported, form):
    """Front matter that the hub's library reads, with the figures of summary.json; the table."""
    folder, summary = getattr(exported["opt"], form), fake()
    text, fields = (folder / "README.md").read_text(), front_matter(folder)
    assert fields["base_model"] == "opt_base" and fields["license"] == "unknown"
    assert fields["library_name"] == {"peft": "peft", "merged": "transformers"}[form]
    (result,) = fields["model-index"][0]["results"]
    found = {m["type"]: m["value"] for m in result["metrics"]}
    last = [row for row in summary["rows"] if row["method"] == "isara"][-1]
    assert found == last["metrics"] and result["dataset"]["type"] == "safety"
    loaded = huggingface_hub.ModelCard.load(folder / "README.md").data
    assert {r.metric_type: r.metric_value for r in loaded.eval_results} == last["metrics"]
    for row in summary["rows"]:
        assert f"{100 * row['metrics']['harmless_rate']:.1f} %" in text
    assert "930 accepted of 1,536" in text and "| seeds | 64 question" in text
    assert "arxiv.org/abs/2401.06785" in text and "| LoRA rank r | 4 |" in text
    assert "`q_proj`, `k_proj`, `v_proj`, `out_proj`, `fc1`, `fc2`" in text
    assert ("--max-lora-rank 8 " in text) == (form == "peft")
    assert str(folder.parent) not in text  # nobody else has these folders


def test_the_card_says_where_other_metrics_are_from(exported):
    """Of the files of choices and prompts, which are named without their folders."""
    e, summary = exported["llama"], fake()
    summary["metrics_info"]["mc1"] = {"title": "MC1", "higher_is_better": True}
    summary["metrics_info"]["refused"] = {"title": "Refused", "on": "prompts"}
    summary["prompts"] = "9 of the 9 in asked.csv"
    for row in summary["rows"]:
        row["metrics"] |= {"mc1": 0.25, "refused": 0.5}
    c = small(e.base, evaluation__choices="/home/me/truthful.jsonl")
    c.evaluation.prompts = "/home/me/asked.csv"
    c = config.resolve(c)
    about = card.About("x", "peft", "org/base", pretrained.read(str(e.base)), c, SETTINGS, summary)
    text = card.text(about)
    results = yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"]
    of = {m["type"]: r["dataset"]["name"] for r in results for m in r["metrics"]}
    assert of.pop("mc1") == "truthful.jsonl: multiple choice"
    assert of.pop("refused") == "asked.csv: prompts"
    assert set(of.values()) == {"safety: held-out questions"}
    assert "MC1 on the multiple-choice questions of `truthful.jsonl`, prompts: 9 of" in text
    assert "/home" not in text
    for row in summary["rows"]:
        row["metrics"] |= {"mc2": 0.5}
    assert "MC1 and MC2 on the multiple-choice questions of `truthful.jsonl`" in card.text(about)


@pytest.mark.parametrize("form", ["peft", "merged"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_cards_example_runs(exported, family, form):
    """Whoever pastes the snippet gets an answer, the one of this package's prompt format."""
    e = exported[family]
    folder = getattr(e, form)
    (code,) = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    for path in (folder, e.base):
        code = code.replace(f"path/to/{path.name}", str(path))
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        exec(code, {})
    assert shown.getvalue().startswith("Question: Why is the sky blue?\nAnswer:")


def test_the_card_of_a_chat_asks_in_its_template(exported, tmp_path):
    """The template goes with the result, and the example renders a turn by it."""
    e = exported["llama"]
    base, workdir = (shutil.copytree(p, tmp_path / p.name) for p in (e.base, e.workdir))
    template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}</s>{% endfor %}"
    template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    (base / "chat_template.jinja").write_text(template)
    fields = storage.read_json(workdir / "config.json")
    fields["model"] |= {"template": "chat", "path": str(base)}
    storage.write_json(workdir / "config.json", fields)
    hub.export(workdir, "merged", tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == template
    card_text = (tmp_path / "out" / "README.md").read_text()
    assert "the answer ends with `</s>`" in card_text
    (code,) = re.findall("```python\n(.*?)```", card_text, re.DOTALL)
    code = code.replace("path/to/out", str(tmp_path / "out"))
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        exec(code, {})
    assert shown.getvalue().startswith("<user> Why is the sky blue?<assistant>")


@pytest.mark.parametrize(
    ("files", "expected", "said"),
    [
        ({}, {"license": "unknown"}, "unknown: see the base model"),
        ({"README.md": "# no front matter\n"}, {"license": "unknown"}, "unknown"),
        ({"README.md": "---\nlicense: [broken\n---\n"}, {"license": "unknown"}, "unknown"),
        (
            {"README.md": "---\nlicense: other\nlicense_name: opt\nlicense_link: LICENSE.md\n---\n",
             "LICENSE.md": "OPT-175B LICENSE\n"},
            {"license": "other", "license_name": "opt", "license_link": "LICENSE.md"},
            "That of the base model: opt ([LICENSE.md](LICENSE.md)).",
        ),
        (
            {"LICENSE.txt": "LLAMA 2 COMMUNITY LICENSE\nThis ...", "Notice": "Llama 2 is ..."},
            {"license": "other", "license_name": "llama-2-community-license",
             "license_link": "LICENSE.txt"},
            "llama-2-community-license ([LICENSE.txt](LICENSE.txt), [Notice](Notice))",
        ),
    ],
)  # fmt: skip
def test_the_licence_is_the_base_models(exported, tmp_path, files, expected, said):
    """From its card, or its licence file, which goes with the export; else unknown."""
    e = exported["llama"]
    base = shutil.copytree(e.base, tmp_path / "base")
    for name, content in files.items():
        (base / name).write_text(content)
    hub.export(e.workdir, "peft", tmp_path / "out", model=str(base))
    fields = front_matter(tmp_path / "out")
    assert {k: v for k, v in fields.items() if k.startswith("license")} == expected
    assert said in (tmp_path / "out" / "README.md").read_text()
    copied = {name: content for name, content in files.items() if name != "README.md"}
    assert all((tmp_path / "out" / name).read_text() == text for name, text in copied.items())


def test_how_the_base_model_is_named(exported, tmp_path):
    """A name on the hub where its cache tells one, else a path that holds from any folder."""
    e, repository = exported["llama"], tmp_path / "models--org--base-7b"
    snapshot, blobs = repository / "snapshots" / "01c7f73d", repository / "blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(e.base, blobs)
    for file in blobs.iterdir():  # as the hub's cache lays it out
        (snapshot / file.name).symlink_to(os.path.relpath(file, snapshot))
    for model, name in ((snapshot, "org/base-7b"), (os.path.relpath(blobs), str(blobs))):
        out = tmp_path / f"of_{pathlib.Path(model).name}"
        hub.export(e.workdir, "peft", out, model=str(model))
        fields = storage.read_json(out / "adapter_config.json")
        assert fields["base_model_name_or_path"] == name
        assert not any(file.is_symlink() for file in out.iterdir())
    assert front_matter(tmp_path / "of_01c7f73d")["base_model"] == "org/base-7b"


def test_large_models_are_written_in_shards(exported, tmp_path, monkeypatch):
    """Merged weights too: sizes are known before anything is computed."""
    e = exported["llama"]
    monkeypatch.setattr(weights, "SHARD_BYTES", 60_000)
    hub.export(e.workdir, "merged", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 3
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    whole = e.torch_merged().state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in theirs.state_dict().items())


@pytest.mark.parametrize(("rank", "said"), [(1, 8), (16, 16), (65, 128), (321, 512), (513, None)])
def test_vllms_ranks(exported, rank, said):
    """The flag in the card is one that vLLM takes, and enough."""
    e = exported["llama"]
    settings = dataclasses.replace(SETTINGS, rank=rank)
    about = card.About("x", "peft", "org/base", pretrained.read(str(e.base)),
                       config.resolve(small(e.base)), settings, fake())  # fmt: skip
    text = card.text(about)
    flags = re.findall(r"--max-lora-rank (\d+)", text)
    assert flags == ([str(said)] if said else []) and ("Export it merged" in text) == (said is None)


def test_an_exported_adapter_is_where_a_run_starts(exported, tmp_path):
    """train.init_adapter: training starts from exactly these bits; another rank is refused."""
    e = exported["llama"]

    def prepare(**changes):
        c = small(e.base, train__init_adapter=str(e.peft), **LORA | changes)
        return setup.prepare(config.resolve(c), tmp_path, None)

    s = prepare()
    start = Executables(s.program, s.inputs).start(s.seeds)
    assert jax.tree.all(jax.tree.map(np.array_equal, start.trainable, e.adapter))
    with pytest.raises(config.ConfigError, match=r"config.train.lora.rank=8, but .* has 4"):
        prepare(train__lora__rank=8)


def _mistakes():
    """(name, what is done to the folders, what the message must say)."""
    return [
        ("no workdir", lambda w: shutil.rmtree(w), ("not the folder of a run",)),
        ("no run", lambda w: (w / "config.json").unlink(), ("not the folder of a run",)),
        ("unfinished", lambda w: (w / "summary.json").unlink(), ("not finished", "continues it")),
        ("output", lambda w: storage.write_json(w.parent / "out" / "a", {}), ("exists already",)),
        ("base", lambda w: _change(w, "path", "elsewhere"), ("'elsewhere'", "--model=DIR")),
        ("config", lambda w: _change(w, "dtyp", "x"), ("config.json", "no field 'dtyp'")),
        ("adapter", lambda w: shutil.rmtree(w / "adapter"), ("adapter_config.json: not found",)),
        ("other base", lambda w: _change(w, "path", "tiny_llama"), ("not an adapter of every",)),
    ]


def _change(workdir, field, value):
    fields = storage.read_json(workdir / "config.json")
    fields["model"][field] = value
    storage.write_json(workdir / "config.json", fields)


@pytest.mark.parametrize("mistake", _mistakes(), ids=lambda m: m[0])
def test_mistakes_are_named(exported, tmp_path, mistake):
    """Each ends in an error that says what to do, and leaves nothing behind."""
    _, damage, said = mistake
    workdir = shutil.copytree(exported["llama"].workdir, tmp_path / "run")
    damage(workdir)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(config.UserError) as error:
        hub.export(workdir, "merged", tmp_path / "out")
    assert all(part in str(error.value) for part in said), error.value
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command(exported, tmp_path):
    """Flags reach the export; mistakes in them end in one line, without a traceback."""
    e, out = exported["llama"], tmp_path / "out"
    flags = ("--format=merged", f"--workdir={e.workdir}", f"--output={out}", "--base_name=org/base")
    asked = [flags, (*flags, f"--workdir={tmp_path}"), (*flags, "--format=gguf")]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "isara_jax.export", *flags], env=environment.of(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for flags in asked
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0] for process in running]
    codes = [process.returncode for process in running]
    assert codes == [0, 1, 1], said
    assert said[0] == f"{out}: how to load it stands in its README.md\n"
    assert front_matter(out)["base_model"] == "org/base"
    ours, theirs = (p / "model.safetensors" for p in (out, e.merged))
    assert ours.read_bytes() == theirs.read_bytes()
    assert said[1].startswith("isara_jax: ") and said[1].count("\n") == 1
    assert "<peft|merged>" in said[2] and "Traceback" not in said[2]
