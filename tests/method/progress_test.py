"""What the terminal and the summary say of a run's stages."""

import os
import sys
import time

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


def test_a_terminal_sees_one_line_of_progress(capsys, monkeypatch):
    """A counter replaces itself and leaves no remains; a file gets no counters."""
    p = progress.Progress()
    p.expect("answers", 384)
    p.begun("answers", 16)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    p.begun("answers", 32)
    p.say("done")
    shown = capsys.readouterr().out
    assert "32/384" in shown and shown.endswith("\rdone\n")


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
