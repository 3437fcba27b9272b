"""The model card of an exported result: README.md with the front matter that the hub reads."""

import dataclasses
import json
import pathlib
import re
import shlex
import urllib.parse
from collections.abc import Iterable, Sequence
from typing import Any

import huggingface_hub
import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from isara_jax import config
from isara_jax.evaluate import choices
from isara_jax.files import storage
from isara_jax.formats import pretrained, weights
from isara_jax.models import lora as lora_lib
from isara_jax.report import table
from isara_jax.shell import terminal
from isara_jax.text import rendering, tokens

PAPER = "2401.06785"
# What vLLM's --max-lora-rank may be (vllm/config/lora.py, MaxLoRARanks; newer ones take 1 too).
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_MOST_README = 256 << 10  # bytes of a card whose front matter is read
_LICENCE_STEMS = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")


@dataclasses.dataclass(frozen=True)
class About:
    """What a card tells of.

    Attributes:
      name: of the exported folder.
      form: `peft` or `merged`.
      base_name: what the base model is called, a name on the hub or a path.
      base: the base model.
      config: of the run.
      lora: the adapter's settings; None where all weights were trained.
      summary: the run's summary.json.
    """

    name: str
    form: str
    base_name: str
    base: pretrained.Pretrained
    config: config.Config
    lora: config.Lora | None
    summary: table.Summary

    @property
    def base_id(self) -> str:
        """The base model without the folders of this machine, which are nobody's business."""
        path = pathlib.PurePath(self.base_name)
        return path.name if path.is_absolute() else self.base_name


def text(about: About) -> str:
    """The whole card."""
    sections = {
        "What it was aligned on": _aligned_on(about),
        "Figures": _figures(about),
        "Settings": _settings(about),
        "How to load it": _loading(about),
        "vLLM": _vllm(about),
        "Licence": _licence(about),
    }
    kind = "A LoRA adapter for" if about.form == "peft" else "A language model, fine-tuned from"
    lead = (
        f"{kind} {_code(about.base_id)}, aligned with [ISARA](https://arxiv.org/abs/{PAPER}): from "
        "some question–answer pairs the model wrote its own questions, answered them with the "
        "nearest pairs as examples, and was fine-tuned on what passed the filters. No instructions "
        "written by people, no reward model. Made with isara_jax."
    )
    body = "\n\n".join(f"## {title}\n\n{content}" for title, content in sections.items())
    head = f"---\n{front_matter(about)}\n---\n\n# {_prose(about.name)}"
    return terminal.visible(f"{head}\n\n{lead}\n\n{body}\n")


def front_matter(about: About) -> str:
    """YAML: base model, library, licence, and the figures of the iteration that is exported."""
    last = table.result(about.summary) or {}
    task = str(table.get(about.summary, "task"))
    held_out = {"dataset_type": task, "dataset_name": f"{task}: held-out questions"}

    def data(name: str) -> dict[str, str]:
        """What a metric is measured on."""
        if name in choices.METRICS:
            file = _file(about.config.evaluation.choices)
            return {"dataset_type": file.stem, "dataset_name": f"{file.name}: multiple choice"}
        if _on_prompts(about, name):
            file = _file(about.config.evaluation.prompts)
            return {"dataset_type": file.stem, "dataset_name": f"{file.name}: prompts"}
        return held_out

    results = [
        huggingface_hub.EvalResult(
            task_type="text-generation",
            **data(name),
            metric_type=name,
            metric_name=" ".join(table.header(about.summary, name)[:2]),
            metric_value=table.get(last, "metrics", name),
        )
        for name in table.metrics(about.summary)
        if table.get(last, "metrics", name) is not None
    ]
    data = huggingface_hub.ModelCardData(
        base_model=_repository(about.base_id),
        library_name="peft" if about.form == "peft" else "transformers",
        pipeline_tag="text-generation",
        tags=["isara", "self-alignment", *(["lora"] if about.lora else []), f"arxiv:{PAPER}"],
        model_name=about.name if results else None,
        eval_results=results or None,
        **licence(about.base.path),
    )
    return data.to_yaml()


def _file(path: str) -> pathlib.PurePath:
    """What is measured on, without the folders of this machine."""
    return pathlib.PurePath(pathlib.PurePath(path).name)


def _on_prompts(about: About, name: str) -> bool:
    return table.get(about.summary, "metrics_info", name, "on") == "prompts"


def _repository(name: str) -> str | None:
    """`name`, if it can be that of a repository; the hub refuses cards with another one."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


# --- the licence ---------------------------------------------------------------------------------


def licence(base: pathlib.Path) -> dict[str, str]:
    """The front matter's fields on the licence, from the base model's card or licence file."""
    try:
        readme = storage.ordinary(storage.followed(base, base / "README.md"), _MOST_README)
        found = huggingface_hub.metadata_load(readme) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):  # none that the hub would take
        found = {}
    names = ("license", "license_name", "license_link")
    fields = {name: found[name] for name in names if isinstance(found.get(name), str)}
    if "license" in fields:
        return fields
    file = next((f for f in licence_files(base) if f.stem.upper().startswith("LICEN")), None)
    if file is None:
        return {"license": "unknown"}
    with file.open(encoding="utf-8", errors="replace") as text:
        title = text.readline(200).lower()
    slug = re.sub(r"[^a-z0-9.]+", "-", title)[:60].strip("-")
    return {"license": "other", "license_name": slug or "see-file", "license_link": file.name}


def licence_files(base: pathlib.Path) -> list[pathlib.Path]:
    """Files of a base model that go with every copy of it."""
    found = (p for p in base.iterdir() if p.stem.upper() in _LICENCE_STEMS and p.is_file())
    return sorted(storage.followed(base, path) for path in found)


def _licence(about: About) -> str:
    found = licence(about.base.path)
    if found["license"] == "unknown":
        return "unknown: see the base model"
    name = found.get("license_name", found["license"])
    files = ", ".join(
        f"[{_prose(f.name)}]({urllib.parse.quote(f.name)})" for f in licence_files(about.base.path)
    )
    return f"That of the base model: {_prose(name)}" + (f" ({files})" if files else "") + "."


# --- what was done -------------------------------------------------------------------------------


def _aligned_on(about: About) -> str:
    summary = about.summary
    iterations = table.get(summary, "iterations") or []
    attempted, accepted = (
        sum(i.get(name) or 0 for i in iterations) for name in ("attempted", "accepted")
    )
    ratio = table.get(summary, "scaling_ratio")
    rows = [
        ("task", _code(str(table.get(summary, "task")))),
        ("seeds", f"{table.get(summary, 'n_seeds')} question–answer pairs"),
        ("iterations", len(iterations)),
        ("samples", f"{accepted:,} accepted of {attempted:,}"),
    ]
    if ratio is not None:
        rows.append(("scaling ratio", f"{ratio:.1f} accepted samples for each seed"))
    return _table(("", ""), rows)


def _figures(about: About) -> str:
    summary = about.summary
    found = table.rows(summary)
    rows = []
    for name in table.metrics(summary):
        cells = (table.cell(summary, row, name) for row in found)
        shown = (f"{value} ({span})" if span else value for value, span in cells)
        rows.append((_prose(" ".join(filter(None, table.header(summary, name)))), *shown))
    heads = ["", *map(table.label, found)]
    names, evaluation = table.metrics(summary), about.config.evaluation
    on_prompts = {name for name in names if _on_prompts(about, name)}
    where = ["on held-out questions"] if set(names) - {*choices.METRICS} - on_prompts else []
    if titles := [title for name, title in choices.METRICS.items() if name in names]:
        file = _file(evaluation.choices).name
        where.append(f"{' and '.join(titles)} on the multiple-choice questions of {_code(file)}")
    if on_prompts:
        where.append(
            f"prompts: {_prose(str(table.get(summary, 'prompts')))}; refusals by rule "
            "(crude), by phrases at the beginning of the answer"
        )
    lead = (
        f"Measured by isara_jax before the export: {', '.join(where)}; in brackets the 95 % "
        "interval; ↑: higher is better, ↓: lower is better. This is the model of "
        f"{_exported(summary)}."
    )
    said = (" ".join(table.verdict(summary)), *table.provenance(summary))
    return "\n\n".join((lead, _table(heads, rows), *map(_prose, said)))


def _exported(summary: table.Summary) -> str:
    """Which iteration's model this is."""
    kept = table.get(summary, "kept", "iteration")
    return f"iteration {kept}" if kept else "the last iteration"


def _settings(about: About) -> str:
    train = about.config.train
    rows: list[tuple[str, Any]] = [("trained", "all weights")]
    if about.lora:
        rows = [
            ("LoRA rank r", about.lora.rank),
            ("LoRA alpha", f"{about.lora.alpha:g}"),
            ("targets", ", ".join(f"`{name}`" for name in _targets(about, about.lora))),
        ]
    if train.init_adapter:
        rows.append(("started from", _code(pathlib.PurePath(train.init_adapter).name)))
    rows += [
        ("learning rate", f"{train.learning_rate:g}"),
        ("epochs an iteration", train.epochs),
        ("batch size", train.batch_size),
        ("seed", about.config.seed),
    ]
    return _table(("", ""), rows)


def _targets(about: About, lora: config.Lora) -> list[str]:
    """The adapted layers of a block by their Hugging Face names."""
    network = about.base.network
    return [
        weights.find(network, "/".join((*path, "kernel"))).name.split(".")[-2]
        for path in lora_lib.target_shapes(network, lora)
        if path[0] == "layers_0"
    ]


def _prose(text: str) -> str:
    """Somebody's text as Markdown that shows it, and is neither markup nor HTML."""
    return re.sub(r"([\\`*_\[\]<>#~$!&])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Somebody's text as code within a line."""
    return "`" + " ".join(text.split()).replace("`", "'") + "`"


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    cells = ([str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


# --- how to use it -------------------------------------------------------------------------------

_PYTHON = """\
```python
{imports}
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder})
{load}
{prompt}
output = model.generate(inputs.input_ids, max_new_tokens=100, do_sample=False{ends})
print(tokenizer.decode(output[0], skip_special_tokens=True))
```"""


_PROMPT = """\
prompt = {}
inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")"""
_MESSAGES = """\
messages = [{{"role": "user", "content": {}}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)"""
_ASKED = "Why is the sky blue?"


def _loading(about: About) -> str:
    folder, base = _quoted(_path(about.name)), _quoted(_path(about.base_id))
    imports, load = "", f'model = AutoModelForCausalLM.from_pretrained({folder}, dtype="auto")'
    if about.form == "peft":
        imports = "from peft import PeftModel"
        load = (
            f'base = AutoModelForCausalLM.from_pretrained({base}, dtype="auto")\n'
            f"model = PeftModel.from_pretrained(base, {folder})"
        )
    how, prompt, ends = (_turns if about.config.model.template != "plain" else _plain)(about)
    code = _PYTHON.format(
        imports=imports, folder=folder, load=load, prompt=prompt, ends=ends
    ).replace("```python\n\n", "```python\n")
    return f"{how}\n\n{code}"


def _turns(about: About) -> tuple[str, str, str]:
    """As `_plain`, of a chat's template."""
    vocabulary = about.base.vocabulary
    inserted = ""
    if about.config.model.template == "chat_with_system":
        inserted = (
            " What the template puts first by itself was part of it; where that names a day, it "
            f"was {rendering.DAY:%d %B %Y}."
        )
    end = vocabulary.tokenizer.convert_ids_to_tokens(vocabulary.eos)
    return (
        "It was trained on questions and answers in the tokenizer's own chat template, and on "
        f"nothing else: a prompt is a user's turn, the answer ends with {_code(end)}. "
        f"Question–answer pairs may stand before it, as earlier turns.{inserted}",
        _MESSAGES.format(_quoted(_ASKED)),
        f", eos_token_id={list(vocabulary.ends)}",
    )


def _plain(about: About) -> tuple[str, str, str]:
    """How to ask in words, the lines that make `inputs`, and what else `generate` is told."""
    vocabulary = about.base.vocabulary
    begin = "".join(vocabulary.tokenizer.convert_ids_to_tokens(list(vocabulary.begin)))
    return (
        "It was trained on questions and answers in one template, and on nothing else: a prompt "
        f"is {'the start token and ' if begin else ''}the lines below, the answer ends with the "
        "end token. "
        f"Question–answer pairs may stand before it, each followed by {_quoted(tokens.SEPARATOR)}, "
        f"as examples.",
        _PROMPT.format(_quoted(begin + tokens.render([], _ASKED))),
        "",
    )


def _path(name: str) -> str:
    """A name on the hub, or a folder that whoever reads the card must find."""
    return name if "/" in name else f"path/to/{name}"


def _quoted(value: str) -> str:
    """A text as Python and JSON write it, which ends no block of code."""
    return json.dumps(value, ensure_ascii=False).replace("`", "\\u0060")


def _word(name: str) -> str:
    """A name as a shell reads it, in one line."""
    return shlex.quote(" ".join(name.split()))


def _vllm(about: About) -> str:
    folder = _word(_path(about.name))
    if about.form == "merged":
        return f"    vllm serve {folder}"
    assert about.lora
    rank = next((r for r in VLLM_RANKS if r >= about.lora.rank), None)
    allowed = ", ".join(map(str, VLLM_RANKS))
    if rank is None:
        return (
            f"vLLM takes adapters of rank 512 at most; this one has {about.lora.rank}. Export it "
            "merged."
        )
    return "\n".join([
        f"    vllm serve {_word(_path(about.base_id))} --enable-lora --max-lora-rank {rank} \\",
        f"        --lora-modules {_word(about.name)}={folder}",
        "",
        f"- `--max-lora-rank` must be one of {allowed}, and not below this adapter's r = "
        f"{about.lora.rank}.",
        "- Layers that vLLM adapts: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj and "
        "down_proj of LLaMA; q_proj, k_proj, v_proj, out_proj, fc1 and fc2 of OPT (since "
        "vllm-project/vllm#25717 of autumn 2025; for an older vLLM export merged). This adapter "
        "has no others: embeddings, norms and the head are as in the base model.",
        "- The file is f32; vLLM computes in the type of the base model (`--lora-dtype`).",
    ])  # fmt: skip
