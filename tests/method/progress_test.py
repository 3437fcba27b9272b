"""What the terminal and the summary say of a run's stages."""

import itertools
import os
import sys
import time

import pytest

from isara_jax.method import progress


def test_stages_are_booked_in_order_whatever_the_runtime_does(capsys):
    """Callbacks of two stages may swap: neither may take the other's time."""
    p = progress.Progress()
    p.ended("questions", 10)
    time.sleep(0.05)
    p.ended("accept", 3)
    p.ended("answers", 20)
    p.ended("train", 30)
    told = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert told == ["questions", "answers", "accept", "train"]
    assert p.seconds["answers"] >= 0.05 > p.seconds["accept"]
    p.ended("questions", 10)  # the next iteration begins anew
    assert "questions" in capsys.readouterr().out


def test_compiling_takes_nothing_of_the_stage_it_falls_into(monkeypatch):
    """Nor the stage's time: where answers are compiled and drawn, both would be compilation."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    p = progress.Progress()
    now[0] += 8
    p.aside("compile", 3)
    now[0] += 2
    p.lap("evaluation")
    assert dict(p.seconds) == {"compile": 3, "evaluation": 7}


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_terminal_sees_one_line_of_progress(clock, capsys, monkeypatch):
    """It replaces itself and leaves no remains; speed and time left by hand."""
    p = progress.Progress()
    p.expect("answers", 384)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    clock[0] += 10
    p.drawn("answers", 96, 2000)
    assert "96/384, 200 tokens/s, 30 s left" in capsys.readouterr().out
    p.ends_in(7200 + 20 * 60)
    p.drawn("answers", 96, 2000)
    p.say("done")
    shown = capsys.readouterr().out
    assert "30 s left; of the run 2 h 20 min" in shown and shown.endswith("\rdone\n")


def test_a_file_sees_whole_lines_now_and_then(clock, capsys):
    """A log of hours shows that they are worked in: not more than a line in 30 s and a tenth."""
    p = progress.Progress()
    shown = []
    for second in range(1, 601):
        clock[0] += 1
        p.trained(second, 600, 1000 * second)
        if said := capsys.readouterr().out:
            shown.append((second, said))
    seconds = [0, *(second for second, _ in shown)]
    assert {b - a for a, b in itertools.pairwise(seconds)} <= {60, 61} and len(shown) == 9  # tenths
    assert shown[0][1] == "  train      60/600 steps, 1,000 tokens/s, 9 min left\n"
    p.ended("train", 600_000)
    capsys.readouterr()
    p.expect("answers", 10_000)
    for second in range(1, 601):
        clock[0] += 1
        p.drawn("answers", second // 10, 1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("/10,000" in line for line in lines)  # every five minutes


def test_a_run_whose_reader_has_gone_goes_on_and_says_the_rest_in_a_file(
    tmp_path, monkeypatch, capfd
):
    """`… | head -2` must not end what takes hours, nor lose what it says."""
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w"))
    p = progress.Progress(rest=tmp_path / "run" / "output.txt")
    p.say("first")
    p.say("second")
    sys.stdout.close()
    written = (tmp_path / "run" / "output.txt").read_text().splitlines()
    assert "Broken pipe" in written[0] and written[1:] == ["first", "second"]
    assert str(tmp_path / "run" / "output.txt") in capfd.readouterr().err
