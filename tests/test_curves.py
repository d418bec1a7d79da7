import curves


def test_curves_that_cannot_be_written_are_warned_of_once(tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    with curves.Writer(tmp_path / "file") as writer:
        for step in range(3):
            writer.write("scalars", step, {"loss": 1.0})
    assert capsys.readouterr().err.count("no more curves") == 1


def test_what_is_flushed_can_be_read(tmp_path):
    with curves.Writer(tmp_path, 0) as writer:
        for step in (1, 2, 3):
            writer.write("scalars", step, {"loss": step / 2})
        writer.flush()
        assert curves.read(tmp_path, "loss", "none") == [[(1, 0.5), (2, 1.0), (3, 1.5)], []]
