import html.parser
import json
import re

import numpy as np
import pytest
from conftest import tiny_config

import data
import evaluate
import report
from model import create_model, init_variables


@pytest.fixture(scope="module")
def scored():
    """(config, variables, score) of an untrained network."""
    config = tiny_config()
    model = create_model(config)
    return config, init_variables(model, config), evaluate.make_scorer(model)


def test_the_grid_shows_the_most_wrong_pairs_first(scored):
    config, variables, score = scored
    found = evaluate.evaluate(config, score, variables, "test")
    figure = report.draw_pairs(found, rows=2, columns=3)
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 6
    probability = 1 / (1 + np.exp(-found.scores.logits))
    for_truth = np.where(found.pairs.label == 1, probability, 1 - probability)
    worst = for_truth.argmin()
    truth = "same" if found.pairs.label[worst] else "different"
    assert titles[0].startswith(f"{truth}, said") and f"{probability[worst]:.3f}" in titles[0]


def test_the_page_is_whole_and_asks_nothing_of_the_network(whole_run):
    folder = whole_run[0] / "evaluation"
    page = (folder / "report.html").read_text()
    values = json.loads((folder / "metrics.json").read_text())
    assert f"{100 * values['accuracy']:.2f} % right" in page
    assert f"{values['wrong']:,} wrong of 9,216 pairs" in page
    assert all(
        f"{name}.png" in {path.name for path in folder.iterdir()} for name in report.CAPTIONS
    )
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) == len(report.CAPTIONS) == 5
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?:|<script|@import|url\(", page)
    opened = []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, _):
            opened.append(tag)

        def handle_endtag(self, tag):
            while opened.pop() != tag:  # tags that need no end
                pass

    Reader().feed(page)
    assert not opened


def test_the_breakdown_is_a_count_of_the_right_answers(scored):
    _, variables, score = scored
    config = tiny_config()
    config.data.split = "disjoint"
    config.data.placement = "inside"
    config.eval.num_pairs = 400
    found = evaluate.evaluate(config, score, variables, "test", most=1)
    assert not found.pairs.exact
    names = report.kind_names(config, found.pairs)
    tables = report.breakdown(found, names)
    assert list(tables) == ["classes", "sizes, pixels", "distance of the centres, pixels"]
    right = found.scores.predicted == (found.pairs.label == 1)
    latents = found.pairs.latents
    for i, one in enumerate(("circle", "square")):
        for j, other in enumerate(("circle", "square")):
            chosen = (names[found.pairs.first] == one) & (names[found.pairs.second] == other)
            assert tables["classes"][2][i, j] == pytest.approx(right[chosen].mean())
            assert (found.pairs.label[chosen] == (i == j)).all()
    rows = [latents.row[found.pairs.first], latents.row[found.pairs.second]]
    columns = [latents.column[found.pairs.first], latents.column[found.pairs.second]]
    apart = np.hypot(rows[0] - rows[1], columns[0] - columns[1])
    _, texts, table = tables["distance of the centres, pixels"]
    assert (
        table.shape == (1, len(texts)) and (np.diff([float(t.split()[0]) for t in texts]) > 0).all()
    )
    nearest = apart < np.quantile(apart, 1 / 6)
    assert table[0, 0] == pytest.approx(right[nearest].mean(), abs=0.02)
    whole = evaluate.evaluate(config, score, variables, "test")
    assert whole.pairs.exact and not whole.pairs.ordered
    table = report.breakdown(whole, report.kind_names(config, whole.pairs))["classes"][2]
    np.testing.assert_array_equal(table, table.T)


@pytest.mark.parametrize("continuous", [False, True])
def test_latents_are_those_of_the_images(continuous, tiny):
    """Of drawn images the centre of the lit pixels is where the latents say."""
    tiny.data.placement = "inside"
    tiny.data.continuous = continuous
    pairs = data.sample_pairs(tiny, "test", 50)
    y, x = np.mgrid[:32, :32]
    for image, row, column, shape, member in zip(
        pairs.images[..., 0], pairs.latents.row, pairs.latents.column, pairs.latents.shape,
        pairs.members, strict=True,
    ):  # fmt: skip
        assert shape == member
        assert y[image > 0].mean() == pytest.approx(row, abs=1)
        assert x[image > 0].mean() == pytest.approx(column, abs=1)


@pytest.mark.parametrize(
    "values, text",
    [
        ([None, None], ""),
        ([None, 0.5, 1.0], "0.7500 (0.5000 to 1.0000), 2 of 3"),
        ([0.5, 1.0, 0.75], "0.7500 (0.5000 to 1.0000)"),
        ([1.0, 1.0], "1.0000"),
        ([1200.0, 1400.4], "1,300 (1,200 to 1,400)"),
        ([80], "80"),
    ],
)
def test_the_mean_and_the_range_of_several_numbers(values, text):
    assert report.spread(values) == text


def test_other_versions_are_warned_of_and_kept_with_their_step(tmp_path, capsys):
    report.note_versions(tmp_path, 0)
    report.note_versions(tmp_path, 4)
    assert capsys.readouterr().err == ""
    path, now = tmp_path / "versions.json", report.made_with()
    assert json.loads(path.read_text()) == {"0": now}
    path.write_text(json.dumps({"0": now | {"jax": "0.0.1", "python": "2"}}))
    report.note_versions(tmp_path, 8)
    warning = capsys.readouterr().err
    assert "python was 2, is" in warning and "jax was 0.0.1, is" in warning
    assert warning.count("\n") == 1 and "numpy" not in warning
    assert list(json.loads(path.read_text())) == ["0", "8"]
    assert report.last_versions(tmp_path) == now
    path.write_text("[]")
    assert report.last_versions(tmp_path) == now


def test_curves_that_cannot_be_written_are_warned_of_once(tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    with report.open_writer(tmp_path / "file") as write:
        for step in range(3):
            write("scalars", step, {"loss": 1.0})
    assert capsys.readouterr().err.count("no more curves") == 1


@pytest.mark.parametrize("width", [1, 2])
def test_a_network_of_one_feature_is_drawn_too(width, tiny, tmp_path):
    tiny.model.update({"encoder": "cnn", "stage_sizes": (1,), "width": width})
    model = create_model(tiny)
    score = evaluate.make_scorer(model)
    found = evaluate.evaluate(tiny, score, init_variables(model, tiny), "test")
    figures = report.draw_figures(tiny, tmp_path, found)
    assert ("embeddings" in figures) == (width == 2)
    for figure in figures.values():
        png, pixels = report.render(figure)
        assert png.startswith(b"\x89PNG") and pixels.std() > 1
