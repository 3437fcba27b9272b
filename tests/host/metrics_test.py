"""The metric writers: each step once, whatever interrupted the run, and readable by others."""

import json
import struct
import subprocess
import sys

import pytest

from isara_jax.host import metrics


def _strict(line):
    def refuse(word):
        raise ValueError(word)

    return json.loads(line, parse_constant=refuse)


def _lines(workdir):
    return [_strict(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _events(path):
    """The events of a TensorBoard file: length, its check, the bytes, their check."""
    from tensorboardX.proto import event_pb2

    data = path.read_bytes()
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        yield event_pb2.Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]


def test_lines_are_strict_json(tmp_path):
    """NaN and infinities, which JSON has not, become null; other numbers stay."""
    with metrics.MetricWriter(tmp_path, -1) as writer:
        writer.write(0, {"loss": float("nan"), "rate": float("-inf"), "fine": 0.25})
        assert _lines(tmp_path)[0].pop("time") > 1e9  # readable before the writer is closed
    (line,) = _lines(tmp_path)
    line.pop("time")
    assert line == {"step": 0, "loss": None, "rate": None, "fine": 0.25}


def test_resume_leaves_each_step_once(tmp_path):
    """Steps after the checkpoint, and the line a crash tore, are written again, not twice."""
    with metrics.MetricWriter(tmp_path, -1) as writer:
        for step in range(4):
            writer.write(step, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "ti')
    with metrics.MetricWriter(tmp_path, 1) as writer:
        assert [x["step"] for x in _lines(tmp_path)] == [0, 1]
        for step in (2, 3, 4):
            writer.write(step, {"loss": 2.0})
    found = [(x["step"], x["loss"]) for x in _lines(tmp_path)]
    assert found == [(0, 1.0), (1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0)]


def test_torn_line_does_not_swallow_the_next(tmp_path):
    """A torn line of a step that is kept goes too; the next line starts fresh."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "time": 1}\n{"step": 1')
    with metrics.MetricWriter(tmp_path, 5) as writer:
        writer.write(6, {})
    assert [x["step"] for x in _lines(tmp_path)] == [0, 6]


def test_damage_elsewhere_is_named(tmp_path):
    """A broken line in the middle is no torn write: it is named and nothing is dropped."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: .*nonsense"):
        metrics.MetricWriter(tmp_path, 5)
    assert "nonsense" in path.read_text()


def test_own_fields_are_not_overwritten(tmp_path):
    """A scalar called step would corrupt the resume."""
    with metrics.MetricWriter(tmp_path, -1) as writer, pytest.raises(ValueError, match="step"):
        writer.write(0, {"step": 3.0})


def test_tensorboard_events_read_back(tmp_path):
    """TensorBoard sees the same numbers, and after a resume is told which to hide."""
    for resume, steps in ((-1, (0, 1, 2)), (1, (2,))):
        with metrics.MetricWriter(tmp_path, resume) as writer:
            for step in steps:
                writer.write(step, {"eval/harmless_rate": 0.5 + step, "loss": 1.0})
    files = sorted((tmp_path / "tensorboard").iterdir())
    assert len(files) == 2
    first, second = (list(_events(f)) for f in files)
    values = [(e.step, v.tag, v.simple_value) for e in first for v in e.summary.value]
    assert values == [
        (s, *pair) for s in (0, 1, 2) for pair in (("eval/harmless_rate", 0.5 + s), ("loss", 1.0))
    ]
    starts = [e.step for e in second if e.HasField("session_log")]
    assert starts == [2]


def test_no_tensorflow(tmp_path):
    """Writing events must not pull in TensorFlow, whose GPU memory and start time nobody wants."""
    code = (
        "import pathlib, sys; from isara_jax.host import metrics\n"
        "with metrics.MetricWriter(pathlib.Path(sys.argv[1]), -1) as w: w.write(0, {'a': 1})\n"
        "assert 'tensorboardX' in sys.modules and 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
