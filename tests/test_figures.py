import io

import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image

import figures
import scoring
from model import create_model, init_variables


@pytest.fixture(scope="module")
def scored():
    """(config, variables, score) of an untrained network."""
    config = tiny_config()
    model = create_model(config)
    return config, init_variables(model, config), scoring.make_scorer(model)


def test_the_grid_shows_the_most_wrong_pairs_first(scored):
    config, variables, score = scored
    found = scoring.evaluate(config, score, variables, "test")
    figure = figures.plot_pairs(found, rows=2, columns=3)
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 6
    probability = 1 / (1 + np.exp(-found.scores.logits))
    for_truth = np.where(found.pairs.label == 1, probability, 1 - probability)
    worst = for_truth.argmin()
    truth = "same" if found.pairs.label[worst] else "different"
    assert titles[0].startswith(f"{truth}, said") and f"{probability[worst]:.3f}" in titles[0]


def test_pairs_are_ordered_by_the_probability_of_the_truth_each_two_images_once(scored):
    config, variables, score = scored
    found = scoring.evaluate(config, score, variables, "test")
    pairs = found.pairs._replace(ordered=True)  # as if (a, b) and (b, a) were two
    probability = np.random.default_rng(0).random(len(pairs.label))
    order = figures.hardest_first(pairs, probability)
    for_truth = np.where(pairs.label == 1, probability, 1 - probability)
    assert (np.diff(for_truth[order]) >= 0).all() and len(order) == 96 * 97 // 2
    pairs = pairs._replace(
        first=np.concatenate([pairs.first, pairs.second]),
        second=np.concatenate([pairs.second, pairs.first]),
        label=np.tile(pairs.label, 2),
    )
    probability = np.concatenate([probability, probability / 2])
    order = figures.hardest_first(pairs, probability)
    unordered = {frozenset((pairs.first[i], pairs.second[i])) for i in order}
    assert len(unordered) == len(order) == 96 * 97 // 2


def test_every_figure_shows_something(scored, tmp_path):
    config, variables, score = scored
    found = scoring.evaluate(config, score, variables, "test")
    for figure in figures.plot_figures(tmp_path, found).values():
        pixels = np.asarray(Image.open(io.BytesIO(figures.render(figure))))
        assert pixels[..., :3].std() > 1
    answers = figures.plot_decisions(found).axes[2]
    assert [line.get_xdata()[0] for line in answers.lines] == [found.metrics["threshold"]]


def test_files_are_named_below_their_images_and_no_text_meets_another(scored):
    config, variables, score = scored
    found = scoring.evaluate(config, score, variables, "test")
    names = np.array([f"MEN $x${i % 40 * 'NAME'}/\u732b {i}.PNG" for i in range(96)])
    pairs = found.pairs._replace(names=names)
    figure = figures.plot_pairs(found._replace(pairs=pairs))
    figures.render(figure)  # fails if Matplotlib reads a formula, or warns of letters
    index = figures.hardest_first(pairs, 1 / (1 + np.exp(-found.scores.logits)))[0]
    said = figure.axes[0].texts[0].get_text().split("\n")
    for text, image in zip(said, (pairs.first[index], pairs.second[index]), strict=True):
        assert text.startswith(r"MEN \$x\$") and text.endswith(f"{image}.PNG")
    texts = [text for axes in figure.axes for text in (axes.title, *axes.texts)]
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) == 48
    assert all(one.count_overlaps(boxes) == 1 for one in boxes)  # with itself
    assert all(figure.bbox.contains(*corner) for one in boxes for corner in one.corners())


@pytest.mark.parametrize("most", [7, 8])
def test_a_long_name_keeps_its_ends(most):
    assert figures.short("a" * most, most) == "a" * most
    cut = figures.short("ab/cdefghij.png", most)
    head, tail = cut.split("…")
    assert len(cut) == most and "ab/cdefghij.png".startswith(head)
    assert "ab/cdefghij.png".endswith(tail) and abs(len(head) - len(tail)) <= 1
