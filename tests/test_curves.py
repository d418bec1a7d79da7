import curves


def test_curves_that_cannot_be_written_are_warned_of_once(tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    with curves.Writer(tmp_path / "file") as writer:
        for step in range(3):
            writer.write("scalars", step, {"loss": 1.0})
    assert capsys.readouterr().err.count("no more curves") == 1


def test_what_is_flushed_can_be_read_and_a_resumed_run_goes_on_from_its_step(tmp_path):
    with curves.Writer(tmp_path, 0) as writer:
        for step in (1, 2, 3):
            writer.write("scalars", step, {"loss": step / 2})
        writer.flush()
        assert curves.read(tmp_path, "loss", "none") == [[(1, 0.5), (2, 1.0), (3, 1.5)], []]
    with curves.Writer(tmp_path, 2) as writer:
        writer.write("scalars", 3, {"loss": 9.0})
    assert curves.read(tmp_path, "loss") == [[(1, 0.5), (2, 1.0), (3, 9.0)]]
