"""Models, seeds and a run's folder at URLs, with a file system in memory."""

import concurrent.futures
import json
import pathlib
import shutil
import time
import types

import fsspec
import numpy as np
import pytest
import safetensors.numpy
from fsspec.implementations import memory
from fsspec.registry import known_implementations

from isara_jax import config
from isara_jax.files import remote, storage
from isara_jax.formats import adapters, pretrained, weights
from isara_jax.host import run
from isara_jax.host.executables import Executables
from isara_jax.publish import hub
from isara_jax.tasks import files
from tests.method.iteration_test import small

PAIRS = [{"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}."} for i in range(8)]


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """An empty store, and a cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = fsspec.filesystem("memory")
    found.store.clear()
    found.pseudo_dirs[:] = [""]
    yield found
    found.store.clear()


@pytest.fixture
def model(store, random_model):
    """The URL of the random model, among files that nobody needs."""
    store.put(str(random_model), "/bucket/llama", recursive=True)
    store.pipe("/bucket/llama/pytorch_model.bin", b"a pickle")
    store.pipe("/bucket/llama/original/consolidated.safetensors", b"as it was published")
    return "memory://bucket/llama"


@pytest.fixture
def copied(monkeypatch):
    """The names of the files that are copied from URLs, as they are."""
    names, download = [], remote.Url.download

    def spy(self, *args):
        names.append(self.name)
        download(self, *args)

    monkeypatch.setattr(remote.Url, "download", spy)
    return names


def files_in(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


# --- what is read --------------------------------------------------------------------------------


def test_a_model_is_copied_once_and_only_what_is_read(model, random_model, copied):
    """Gigabytes fetched at every start, or pickles and second copies of the weights with them."""
    copy = pretrained.locate(model)
    assert files_in(copy) == files_in(random_model)
    assert sorted(copied) == sorted(files_in(random_model))
    assert pretrained.locate(model + "/") == copy
    assert len(copied) == len(files_in(random_model))
    assert pretrained.read(model).network == pretrained.read(str(random_model)).network
    assert pretrained.name_of(copy) == model
    assert pretrained.locate(f"file://{random_model}") == random_model


def test_a_model_larger_than_the_disk_is_not_begun(model, monkeypatch, copied):
    """130 GB on a host's disk of 100: said before the first byte, with what to do."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
    with pytest.raises(config.UserError, match="GB free; set XDG_CACHE_HOME.*or mount"):
        pretrained.locate(model)
    assert not copied


def test_a_model_that_has_changed_is_copied_anew(model, store):
    """New weights under the old URL, of the same size; who reads the old copy keeps it."""
    old = pretrained.locate(model)
    before = files_in(old)
    time.sleep(0.01)  # this store knows versions by their time
    content = bytearray(before["model.safetensors"])
    content[-1] ^= 1
    store.pipe("/bucket/llama/model.safetensors", bytes(content))
    new = pretrained.locate(model)
    assert new != old and files_in(old) == before
    assert files_in(new) == before | {"model.safetensors": bytes(content)}


def test_an_interrupted_copy_is_no_model(model, random_model, monkeypatch, copied):
    """Half a model is not taken for one; what has come whole does not come again."""
    get_file = memory.MemoryFileSystem.get_file

    def breaks(self, source, target, **settings):
        get_file(self, source, target, **settings)
        if source.endswith("model.safetensors"):
            half = pathlib.Path(target).read_bytes()[:1000]
            pathlib.Path(target).write_bytes(half)

    with monkeypatch.context() as patch:
        patch.setattr(memory.MemoryFileSystem, "get_file", breaks)
        with pytest.raises(config.UserError, match=r"model\.safetensors: 1,000 of .* bytes came"):
            pretrained.locate(model)
    copied.clear()
    assert files_in(pretrained.locate(model)) == files_in(random_model)
    assert "model.safetensors" in copied and "config.json" not in copied


def test_processes_that_start_together_copy_once(model, random_model, monkeypatch, copied):
    """Several processes of a host, started in one second by a launcher."""
    get_file = memory.MemoryFileSystem.get_file

    def slowly(*args, **settings):
        time.sleep(0.05)
        get_file(*args, **settings)

    monkeypatch.setattr(memory.MemoryFileSystem, "get_file", slowly)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        copies = set(pool.map(pretrained.locate, [model] * 4))
    assert len(copies) == 1
    assert sorted(copied) == sorted(files_in(random_model))


def test_seeds_at_a_url(store, tmp_path):
    """Read as those of a local file; a mistake names the URL and the line."""
    text = "".join(json.dumps(pair) + "\n" for pair in PAIRS)
    (tmp_path / "seeds.jsonl").write_text(text)
    store.pipe("/bucket/seeds.jsonl", text.encode())
    url = "memory://bucket/seeds.jsonl"
    assert files.read_pairs(url) == files.read_pairs(tmp_path / "seeds.jsonl")
    assert files.locate(url, PAIRS[2]["question"]) == f"{url}:3"
    store.pipe("/bucket/seeds.jsonl", text.encode() + b"{oops\n")
    with pytest.raises(files.SeedError, match="memory://bucket/seeds.jsonl:9: malformed JSON"):
        files.read_pairs(url)


class Forbidden(memory.MemoryFileSystem):
    """A store whose owner lets nobody in."""

    protocol = "forbidden"

    def ls(self, *args, **settings):
        raise PermissionError("403: no access\nsee the console")

    open = ls


def test_what_goes_wrong_elsewhere_is_one_line(store, monkeypatch):
    """A misspelt bucket, missing rights or packages: the URL, and what to do."""
    fsspec.register_implementation("forbidden", Forbidden, clobber=True)
    missing = {"class": "no_such_package.System", "err": "Please install no_such_package"}
    monkeypatch.setitem(known_implementations, "uninstalled", missing)
    store.pipe("/bucket/old/pytorch_model.bin", b"a pickle")
    with pytest.raises(config.UserError, match=r"no .*safetensors; found pytorch_model.bin"):
        pretrained.locate("memory://bucket/old")
    for url, said in {
        "memory://no/such": "not found|found nothing, or no such folder",
        "forbidden://bucket/it": "no permission .403: no access see the console",
        "uninstalled://bucket/it": "pip install no_such_package",
        "unknown://bucket/it": "Protocol not known",
    }.items():
        for read in (pretrained.locate, lambda url: files.read_pairs(f"{url}.jsonl")):
            with pytest.raises(config.UserError, match=said) as error:
                read(url)
            assert str(error.value).startswith(url) and "\n" not in str(error.value)


class Hostile(memory.MemoryFileSystem):
    """A store whose names lead elsewhere, and that sends more than it has said."""

    protocol = "hostile"

    def ls(self, path, **settings):
        names = ("..", ".", "a\\b", "a\nb", "config.json", "model.safetensors")
        return [{"name": f"{path}/{name}", "type": "file", "size": 9} for name in names]

    find = lambda self, path, **settings: [f"{path}/{name}" for name in ("../x", "a/../../y", "b")]  # noqa: E731

    def get_file(self, source, target, callback=None, **settings):
        with pathlib.Path(target).open("wb") as file:
            for _ in range(100):
                file.write(bytes(1000))
                callback.relative_update(1000)


def test_what_a_store_says_is_not_believed(tmp_path):
    """A file outside of the folder, or a full disk, by a store's answer."""
    fsspec.register_implementation("hostile", Hostile, clobber=True)
    url = remote.path("hostile://bucket/it")
    assert set(url.files()) == {"config.json", "model.safetensors"}
    assert url.tree() == ["b"]
    with pytest.raises(config.UserError, match="more than 9 bytes came"):
        (url / "config.json").download(tmp_path / "config.json", 9)
    assert not [*tmp_path.iterdir()]
    for text in ("reference::hostile://bucket/it", "hostile://bucket/../it", "hostile://b/."):
        with pytest.raises(config.UserError, match="fetch and unpack it|write the whole path"):
            remote.path(text)


def test_a_folder_is_not_called_what_it_says(random_model, tmp_path):
    """A name, in a card and an adapter's settings, that a downloaded folder has chosen."""
    folder = pathlib.Path(shutil.copytree(random_model, tmp_path / "model"))
    (folder / ".source").write_text("https://elsewhere")
    assert pretrained.name_of(folder) == str(folder.resolve())


# --- what is written -----------------------------------------------------------------------------


def test_what_ends_a_run_is_mirrored_last(store, monkeypatch):
    """A summary beside a report that never came would be a finished run without one."""
    upload = remote.Url.upload

    def breaks(self, source):
        if self.name == "report.html":
            raise config.UserError("the line is down")
        upload(self, source)

    with remote.workdir("memory://bucket/run") as place:
        storage.write_json(place.local / "summary.json", {})
        storage.write_json(place.local / "report.html", {})
        storage.write_json(place.local / "data" / "rows.json", {})
        with monkeypatch.context() as patch, pytest.raises(config.UserError):
            patch.setattr(remote.Url, "upload", breaks)
            place.keep()
        assert not store.exists("/bucket/run/summary.json")
        place.keep()
        assert store.find("/bucket/run") == ["/bucket/run/report.html", "/bucket/run/summary.json"]


def test_half_a_checkpoint_is_none(store, monkeypatch):
    """A run that is killed while its checkpoint is mirrored continues from the one before."""
    upload, url = remote.Url.upload, "memory://bucket/run"
    names = ("commit_success.txt", "state/z")  # the first is Orbax's own mark

    def write(place, step, names):
        for name in names:
            file = place.local / "checkpoints" / step / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{step} {name}")

    def dies(self, source):
        if source.name == "z":
            raise KeyboardInterrupt
        upload(self, source)

    with remote.workdir(url) as place:
        write(place, "9", (*names, "a"))
        place.keep_checkpoints("checkpoints")
        write(place, "10", (*names, "a"))
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(remote.Url, "upload", dies)
            place.keep_checkpoints("checkpoints")
    assert store.exists("/bucket/run/checkpoints/10/a")
    with remote.workdir(url) as place:
        found = [p for p in (place.local / "checkpoints").rglob("*") if p.is_file()]
        assert {p.read_text() for p in found} == {f"9 {name}" for name in (*names, "a")}
        write(place, "10", (*names, "b"))
        (place.local / "checkpoints" / "9").rename(place.local / "gone")
        place.keep_checkpoints("checkpoints")
    assert set(store.find("/bucket/run/checkpoints")) == {
        f"/bucket/run/checkpoints/10/{name}" for name in (*names, "b", "mirrored.txt")
    }
    with remote.workdir(url) as place:
        assert (place.local / "checkpoints" / "10" / "state" / "z").read_text() == "10 state/z"


@pytest.fixture
def compiled_once(monkeypatch):
    """Lets the runs of a test share their programs, which are the same."""
    shared, start = {}, Executables.__init__

    def starts(self, *args):
        start(self, *args)
        self._compiled = shared

    monkeypatch.setattr(Executables, "__init__", starts)


def adapter(folder):
    return safetensors.numpy.load_file(folder / "adapter" / "adapter_model.safetensors")


def test_a_run_elsewhere_is_continued_as_one_here(
    model, random_model, store, compiled_once, tmp_path, monkeypatch, capsys
):
    """Model, seeds and folder at URLs, killed in the second iteration and started again."""
    text = "".join(json.dumps(pair) + "\n" for pair in PAIRS)
    store.pipe("/bucket/seeds.jsonl", text.encode())
    (tmp_path / "seeds.jsonl").write_text(text)
    changes = {
        "task__name": "sums", "task__n_seeds": 0, "task__held_out": 2,
        "evaluation__sft_steps": (), "train__lora__targets": ("q", "v"),
    }  # fmt: skip
    here = config.resolve(small(random_model, task__seeds=str(tmp_path / "seeds.jsonl"), **changes))
    local = tmp_path / "local"
    expected = run.run(here, local)

    c = config.resolve(small(model, task__seeds="memory://bucket/seeds.jsonl", **changes))
    step, calls = Executables.step, []

    def dies(self, state, **keep):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(self, state, **keep)

    monkeypatch.setattr(Executables, "step", dies)
    url = "memory://bucket/runs/sums"
    with pytest.raises(KeyboardInterrupt):
        run.run(c, url)
    summary = run.run(c, url)
    assert len(calls) == 3  # the first iteration was not computed again
    assert summary["rows"] == expected["rows"]
    assert summary["model"] == "llama"

    fetched = tmp_path / "fetched"
    store.get("/bucket/runs/sums", str(fetched), recursive=True)
    assert {p.name for p in fetched.iterdir()} == {p.name for p in local.iterdir()} - {"data"}
    for name in ("samples/iteration_1.jsonl", "samples/iteration_2.jsonl"):
        assert (fetched / name).read_text() == (local / name).read_text()
    ours, theirs = adapter(fetched), adapter(local)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    lines = (fetched / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]
    assert json.loads((fetched / "summary.json").read_text()) == summary

    capsys.readouterr()
    assert run.run(c, url) == summary and len(calls) == 3
    assert f"{url} holds this run, finished" in capsys.readouterr().out
    with pytest.raises(config.ConfigError, match=f"{url} holds a run with another config"):
        run.run(config.resolve(small(model, seed=1)), url)

    with (
        remote.reading(url, "adapter", "model") as workdir,
        remote.writing("memory://bucket/out") as output,
    ):
        hub.export(workdir, "peft", output)
    network = pretrained.read(model).network
    exported, _ = adapters.load(adapters.locate("memory://bucket/out"), network)
    kept, _ = adapters.load(local / "adapter", network)
    for name, value in weights.flatten(kept).items():
        assert np.array_equal(weights.flatten(exported)[name], value)
    taken = pytest.raises(config.UserError, match="memory://bucket/out: exists already")
    with taken, remote.writing("memory://bucket/out"):
        pass
