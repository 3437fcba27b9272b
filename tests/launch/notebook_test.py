"""The notebook as somebody runs it: in a kernel, from top to bottom, only smaller."""

import collections
import csv
import html.parser
import json
import pathlib
import re
import zipfile

import nbclient
import nbformat
import numpy as np
import pytest
import safetensors.numpy

from isara_jax.files import storage
from tests import environment

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = ROOT / "launch" / "colab.ipynb"
PAIRS = [(f"What is {i} and {i}?", f"It is {2 * i}.") for i in range(12)]
HELD_OUT = 5
# Of Colab, what the notebook touches.
COLAB = """
import sys, types
colab = types.ModuleType("google.colab")
colab.files = types.SimpleNamespace(
    upload=lambda: {SEEDS: b""}, download=lambda path: print("downloaded", path)
)
colab.drive = types.SimpleNamespace(mount=lambda path: print("mounted", path))
sys.modules["google.colab"] = colab
"""


def fill_in(notebook, **fields):
    """Sets form fields, as one does by typing into them."""
    for name, value in fields.items():
        field = re.compile(rf"^{name} = .*?(?=  # @param)", re.MULTILINE)
        (cell,) = [c for c in notebook.cells if c.cell_type == "code" and field.search(c.source)]
        cell.source = field.sub(lambda _, line=f"{name} = {value!r}": line, cell.source)


class Session:
    """A kernel, the notebook whose cells it runs, and the folder of its results."""

    def __init__(self, folder, where, **fields):
        self.notebook = nbformat.read(NOTEBOOK, as_version=4)
        fill_in(self.notebook, RUNS=str(folder / "runs"), QUICK=True, **fields)
        self.results = folder / "runs-quick"
        self.index = {cell.id: i for i, cell in enumerate(self.notebook.cells)}
        resources = {"metadata": {"path": str(where)}}
        self.client = nbclient.NotebookClient(self.notebook, timeout=900, resources=resources)

    def run(self, *ids):
        """Runs these cells, by default all."""
        for name in ids or self.index:
            self.client.execute_cell(self.cell(name), self.index[name])

    def type_in(self, code):
        """Runs a cell that is not the notebook's, and returns what it prints."""
        self.notebook.cells.append(nbformat.v4.new_code_cell(code))
        self.client.execute_cell(self.notebook.cells[-1], len(self.notebook.cells) - 1)
        return printed(self.notebook.cells[-1])

    def cell(self, name):
        return self.notebook.cells[self.index[name]]

    def page(self, name):
        """What a cell shows as HTML."""
        (shown,) = [x.data["text/html"] for x in self.cell(name).outputs if "data" in x]
        return shown

    def refusal(self, name):
        """What stands below a cell that must fail, its traceback."""
        with pytest.raises(nbclient.exceptions.CellExecutionError):
            self.run(name)
        return self.cell(name).outputs[-1].traceback


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


class Page(html.parser.HTMLParser):
    """Counts a page's elements, and keeps its text and the attributes of each tag."""

    def __init__(self, source):
        super().__init__()
        self.text, self.attributes = [], collections.defaultdict(list)
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.attributes[tag].append(dict(attrs))

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def session(random_model, tmp_path_factory):
    """The whole notebook, opened in its folder of a checkout, with own seeds and an own model."""
    folder = tmp_path_factory.mktemp("my notebooks")
    seeds = folder / "sums.csv"
    with seeds.open("w", newline="") as file:
        csv.writer(file).writerows([("question", "answer"), *PAIRS])
    own = {"NAME": "sums", "SEEDS": "upload", "HELD_OUT": HELD_OUT, "MODEL": str(random_model)}
    session = Session(folder, NOTEBOOK.parent, **own, OWN_QUESTION="What is 7 and 7?")
    colab = {"MPLBACKEND": "colab"}  # which a kernel there names, and .venv does not have
    with session.client.setup_kernel(env=environment.of() | colab):
        session.type_in(COLAB.replace("SEEDS", repr(str(seeds))))
        session.run()
        yield session


def test_it_is_committed_clean():
    """Valid, with no outputs (which may hold somebody's paths), and ids that diffs can follow."""
    notebook = nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    for cell in notebook.cells:
        assert re.fullmatch(r"[a-z-]+", cell.id)
        assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.parametrize("name, job", [("report", "safety"), ("own-report", "sums")])
def test_table_and_plots_are_shown(session, name, job):
    """The run's own table and plots stand in the notebook, in a frame."""
    (frame,) = Page(session.page(name)).attributes["iframe"]
    page = Page(frame["srcdoc"])
    summary = storage.read_json(session.results / job / "summary.json")
    shown = "".join(page.text)
    for row in summary["rows"]:
        value = next(iter(row["metrics"].values()))
        assert (f"{100 * value:.1f} %" if row["counts"] else f"{value:.3f}") in shown
    plots = [attributes["aria-label"] for attributes in page.attributes["svg"]]
    assert len(plots) >= 2 and "What became of the generated samples" in plots
    assert len(page.attributes["path"]) > 10 * len(plots)


def test_own_seeds_and_model_were_used(session, random_model):
    """The second job reads the file that was uploaded, not the example, and the named model."""
    summary = storage.read_json(session.results / "sums" / "summary.json")
    assert (summary["task"], summary["n_seeds"]) == ("sums", len(PAIRS) - HELD_OUT)
    assert {row["n"] for row in summary["rows"]} == {HELD_OUT}
    assert summary["config"]["model"]["path"] == str(random_model)


@pytest.mark.parametrize("name, columns", [("talk", 2), ("own-talk", 3)])
def test_answers_stand_side_by_side(session, name, columns):
    """Each model's answer under its name."""
    _, heads, answers = session.page(name).split("<tr>")
    heads = Page(heads).text
    assert len(heads) == columns and (heads[0], heads[-1]) == ("base model", "aligned")
    assert len(Page(answers).attributes["td"]) == columns and Page(answers).text


def test_the_download_is_the_adapter(session):
    """What is taken home is the result of one's own job, as PEFT's files."""
    path = session.results / "sums-peft.zip"
    assert f"downloaded {path}" in printed(session.cell("download"))
    with zipfile.ZipFile(path) as archive:
        tensors = safetensors.numpy.load(archive.read("adapter_model.safetensors"))
        assert json.loads(archive.read("adapter_config.json"))["peft_type"] == "LORA"
    kept = session.results / "sums" / "adapter" / "adapter_model.safetensors"
    expected = safetensors.numpy.load_file(kept)
    assert set(tensors) == set(expected) and len(tensors) > 10
    assert all(np.array_equal(tensors[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "content, said",
    [
        ("prompt,answer\nWhy?,So.\n", r"seeds.csv:1: question: found 0 columns"),
        ("question,answer\nWhy?,So.\nHow?,Thus.\n", rf"found 2 pairs; held_out={HELD_OUT}"),
    ],
)
def test_a_mistake_ends_in_one_line(session, tmp_path, content, said):
    """Wrong columns and too few seeds: the package's sentence, not a page of traceback."""
    seeds = tmp_path / "seeds.csv"
    seeds.write_text(content)
    fill_in(session.notebook, NAME="mistake", SEEDS=str(seeds))
    (line,) = session.refusal("own")
    assert line.startswith("Stopped: isara_jax: ") and re.search(said, line) and "\n" not in line
    assert "Traceback" not in printed(session.cell("own"))


def test_drive_is_mounted_for_what_lies_there(session):
    """Paths on Drive, and no others, ask for it."""
    assert "mounted /content/drive" in session.type_in('place("/content/drive/MyDrive/isara")')
    assert not session.type_in('place("/content/sample_data")')


def test_outside_a_checkout_it_says_what_to_fill_in_and_clones(tmp_path):
    """In a fresh runtime there is nothing but the notebook."""
    session = Session(tmp_path, tmp_path)
    with session.client.setup_kernel():
        session.run("settings", "helpers")
        (line,) = session.refusal("checkout")
        assert "set REPOSITORY" in line and str(tmp_path) in line
        fill_in(session.notebook, REPOSITORY=str(ROOT))
        session.run("settings", "checkout")
    assert (tmp_path / "isara_jax" / "isara_jax" / "main.py").exists()
