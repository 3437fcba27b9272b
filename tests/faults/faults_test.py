"""Runs that are killed at chosen moments; `python -m tests.faults` kills at random ones."""

import contextlib
import shutil
import signal

import pytest

from isara_jax import config
from isara_jax.devices import processes
from isara_jax.host import checkpoint, run
from isara_jax.shell import endings
from tests.faults import runs
from tests.host.checkpoint_test import empty, flip
from tests.method.iteration_test import Compiled, small


class KilledError(BaseException):
    """As if the process were gone: nothing of ours catches it."""


def undisturbed(model, folder, execution):
    """A run that nobody disturbs: its configuration, its folder, what was compiled for it."""
    c = config.resolve(small(model, **runs.Kind(execution).changes))
    compiled = Compiled(silent=True)
    run.run(c, folder / "run", compiled)
    return c, folder / "run", compiled


@pytest.fixture(scope="module")
def whole(random_model, tmp_path_factory):
    """A fused run that nobody disturbs."""
    return undisturbed(random_model, tmp_path_factory.mktemp("whole"), "fused")


@pytest.mark.parametrize(("execution", "further"), [("fused", 3), ("staged", 8)])
def test_killed_wherever_it_is(request, random_model, tmp_path, monkeypatch, execution, further):
    """Killed just before something is kept, again and again, some steps further each time.

    So in stages, baselines and evaluations; in the end all is as it was without that.
    """
    if execution == "fused":
        c, expected, compiled = request.getfixturevalue("whole")
    else:
        c, expected, compiled = undisturbed(random_model, tmp_path / "whole", execution)
    monkeypatch.setattr(checkpoint, "WORTH_SECONDS", 0.0)
    moments = []

    def dying(function):
        def dies(*given, **named):
            moments.append(function.__name__)
            if len(moments) > further:
                raise KilledError
            return function(*given, **named)

        return dies

    for holder, name in ((checkpoint._Folder, "_save"), (run._Run, "_note")):
        monkeypatch.setattr(holder, name, dying(getattr(holder, name)))
    killed = True
    while killed:
        moments.clear()
        with contextlib.suppress(KilledError):
            run.run(c, tmp_path / "run", compiled)
            killed = False
    assert runs.differences(tmp_path / "run", expected) == []
    assert not (tmp_path / "run" / "stages").exists()


def test_the_newest_checkpoint_damaged(whole, tmp_path, capsys):
    """It goes on from the one before, and ends as if nothing had been."""
    c, expected, compiled = whole
    processes.say_once.cache_clear()
    place = shutil.copytree(expected, tmp_path / "run")
    (place / "summary.json").unlink()
    flip(place / "checkpoints" / "2")
    run.run(c, place, compiled)
    assert "run/checkpoints/2 is damaged" in capsys.readouterr().err
    assert runs.differences(place, expected) == []


@pytest.mark.parametrize("name", ["config.json", "history.json", "summary.json", "adapter"])
def test_a_file_that_is_damaged_or_gone(whole, tmp_path, capsys, name):
    """What follows from the rest is written anew, and said; nothing is computed from half of it."""
    c, expected, compiled = whole
    for damage in ("cut", "gone"):
        processes.say_once.cache_clear()
        place = shutil.copytree(expected, tmp_path / damage)
        path = place / name
        if damage == "gone" or path.is_dir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:100])
        if name in ("config.json", "history.json"):
            (place / "summary.json").unlink()  # else the run is finished, and they are not read
        run.run(c, place, compiled)
        said = capsys.readouterr().err
        assert (f"{name}" in said) == (damage == "cut" and name != "adapter"), said
        assert runs.differences(place, expected) == []


def test_another_run_is_recognised_without_its_configuration(whole, random_model, tmp_path):
    """config.json is lost, and somebody starts something else in the folder."""
    c, expected, compiled = whole
    place = shutil.copytree(expected, tmp_path / "run")
    (place / "config.json").unlink()
    (place / "summary.json").unlink()
    other = small(random_model, **runs.Kind().changes, seed=5)
    with pytest.raises(config.ConfigError, match="config.seed: 0 there, 5 now"):
        run.run(config.resolve(other), place, compiled)


def test_all_checkpoints_damaged(whole, tmp_path, capsys):
    """It begins anew, and says so."""
    c, expected, compiled = whole
    processes.say_once.cache_clear()
    place = shutil.copytree(expected, tmp_path / "run")
    (place / "summary.json").unlink()
    for step in "12":
        empty(place / "checkpoints" / step)
    run.run(c, place, compiled)
    assert "goes on from the beginning" in capsys.readouterr().err
    assert runs.differences(place, expected) == []


def test_preempted_then_killed(whole, random_model, tmp_path):
    """The command as users start it: SIGTERM at work, then SIGKILL before a file has its name."""
    _, expected, _ = whole
    disturbed = runs.Command(runs.Kind(), random_model, tmp_path)
    (process,) = disturbed.start()
    line = next(line for line in process.stdout if line.startswith("Iteration"))
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == endings.PREEMPTED, line + said
    assert "told to end (SIGTERM): saved iteration" in said
    (process,) = disturbed.start(DIE_AT="8")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, said
    disturbed.finish()
    assert runs.differences(disturbed.workdir, expected) == []
