import builtins

from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

import curves
import figures


def test_without_tensorboard_a_report_has_no_curves_and_says_so(tmp_path, monkeypatch, capsys):
    usual = builtins.__import__

    def lacking(name, *args, **options):
        if name.startswith("tensorboard"):
            raise ModuleNotFoundError("No module named 'tensorboard'")
        return usual(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", lacking)
    assert curves.read(tmp_path, "loss", "accuracy") == [[], []]
    assert "No module named 'tensorboard'" in capsys.readouterr().err
    assert len(figures.plot_training(tmp_path).axes) == 2


def test_curves_that_cannot_be_written_are_warned_of_once(tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    with curves.Writer(tmp_path / "file", 0) as writer:
        for step in range(3):
            writer.write(step, {"loss": 1.0})
    assert capsys.readouterr().err.count("no more curves") == 1


def test_what_is_flushed_can_be_read(tmp_path):
    with curves.Writer(tmp_path, 0) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": step / 2})
        writer.flush()
        assert curves.read(tmp_path, "loss", "none") == [[(1, 0.5), (2, 1.0), (3, 1.5)], []]


def test_points_that_a_killed_run_wrote_after_its_checkpoint_are_dropped(tmp_path):
    for start, value in ((0, 1.0), (2, 7.0)):
        with curves.Writer(tmp_path, start) as writer:
            for step in range(start + 1, start + 4):
                writer.write(step, {"loss": value})
    points = EventAccumulator(str(tmp_path)).Reload().Tensors("loss")  # as TensorBoard shows them
    assert [event.step for event in points] == [1, 2, 3, 4, 5]
    assert curves.read(tmp_path, "loss") == [[(1, 1), (2, 1), (3, 7), (4, 7), (5, 7)]]
