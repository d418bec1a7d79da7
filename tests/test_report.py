import csv
import html.parser
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import photo, tiny_config

import data
import figures
import images
import metrics
import report
import scoring


def test_the_page_is_whole_and_asks_nothing_of_the_network(whole_run):
    folder = whole_run[0] / "evaluation"
    page = (folder / "report.html").read_text()
    values = json.loads((folder / "metrics.json").read_text())
    assert f"{100 * values['accuracy']:.2f} % right" in page
    assert f"{values['wrong']:,} wrong of 9,216 pairs" in page
    names = {path.stem for path in folder.glob("*.png")}
    assert names == {"decisions", "training", "pairs"}
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) == 3
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


def test_the_column_of_intervals_says_whose_they_are():
    values = dict.fromkeys(metrics.NAMES, 0.5) | {"confusion": [[1, 0], [0, 1]], "threshold": 0.5}
    values |= {"pairs": 2, "wrong": 0, "exact": False, "different_pairs": 10**6}
    one = SimpleNamespace(metrics=values)
    table = report.format_table(7, {"validation": one, "test": one}, {"loss": (0.25, 0.75)})
    head, loss, accuracy, *_ = table.splitlines()
    assert head.endswith("validation        test  test, 95 %")
    assert loss.endswith("0.500000  0.250000 to 0.750000") and accuracy.endswith("0.500000")


def evaluated(config, spread=1):
    """The evaluation of a split by made-up answers, of which some are wrong."""
    pairs = data.enumerate_pairs(config.data, "test", 10**6)
    logits = np.random.default_rng(0).normal(pairs.label - 0.5, spread)
    return scoring.evaluate_pairs(config, lambda *_: logits, None, pairs)


@pytest.fixture
def set_of_files(tmp_path):
    """A config of 3 classes with 8 images each, whose names no figure and no CSV would expect."""
    random, root = np.random.default_rng(0), tmp_path / "photos, mine"
    for k, name in enumerate(("_new", "a$b$c", "\u732b/" + "long" * 20)):
        (root / name).mkdir(parents=True)
        for i in range(8):
            photo(random, k).save(root / name / f'{i}, "{k}".png')
    config = tiny_config()
    config.data.update({"source": "folder", "path": str(root), "p_same": 0.5, "image_size": 16})
    return config


@pytest.mark.parametrize("listed", [False, True])
def test_the_hardest_pairs_of_files_are_a_list_that_can_be_read(listed, set_of_files, tmp_path):
    config = set_of_files
    if listed:
        names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
        with open(tmp_path / "list.csv", "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["image1", "image2", "label"])
            table.writerows([a, b, int(i // 8 == j // 8)] for i, a in enumerate(names)
                            for j, b in enumerate(names) if i < j)  # fmt: skip
        config.data.update({"source": "pairs", "path": str(tmp_path / "list.csv")})
    found = evaluated(config)
    report.write_hardest(config, tmp_path, found)
    with open(tmp_path / "hardest.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == report.MOST_HARDEST < 24 * 23 / 2
    probability, label, answer = (
        np.array([float(row[key]) for row in rows]) for key in ("probability", "label", "answer")
    )
    hardness = np.where(label == 1, 1 - probability, probability)
    assert (np.diff(hardness) <= 0).all() and ((probability >= 0.5) == answer).all()
    p = 1 / (1 + np.exp(-found.scores.logits))
    assert hardness[0] == pytest.approx(np.abs(found.pairs.label - p).max(), abs=1e-6)

    config.data.update({"source": "pairs", "path": str(tmp_path / "hardest.csv")})
    read = images.load(config.data)
    assert (read.pairs[:, 2] == label).all() and (read.classes >= 0).all()
    pixels1, pixels2 = (
        [found.pairs.images[k].tobytes() for k in side]
        for side in (found.pairs.first, found.pairs.second)
    )
    given = dict(zip(zip(pixels1, pixels2, strict=True), p, strict=True))
    for (a, b, _), q in zip(read.pairs, probability, strict=True):
        pixels = read.images[a].tobytes(), read.images[b].tobytes()
        assert given[pixels] == pytest.approx(q, abs=1e-6)


@pytest.fixture
def no_figures(monkeypatch):
    """A report without what takes seconds."""
    monkeypatch.setattr(figures, "plot_figures", lambda *_: {})


def test_a_rate_that_the_pairs_cannot_show_is_no_number_and_it_is_said(
    set_of_files, tmp_path, monkeypatch, capsys, no_figures
):
    config = set_of_files  # 24 images of 3 classes: 3 x 8 x 8 = 192 different pairs
    facts = ["24 images of 3 classes", "left out: <a & b>.png"]
    monkeypatch.setattr(data, "describe", lambda config: facts)
    found = evaluated(config)
    report.write_report(config, tmp_path, 7, {"test": found}, constant)
    printed, folder = capsys.readouterr().out, tmp_path / "evaluation"
    values = json.loads((folder / "metrics.json").read_text())
    page = (folder / "report.html").read_text()
    assert values["different_pairs"] == 192
    assert values["tar_at_far_0.001"] is None and 0 < values["tar_at_far_0.01"] < 1
    assert "&lt;a &amp; b&gt;" in page and "<a & b>" not in page
    for text in (printed, html.unescape(page)):
        assert re.search(r"tar_at_far_0.001 +too few\n", text)
    assert all(fact in html.unescape(page) for fact in facts)
    assert (folder / "hardest.csv").exists()


def constant(_, pairs):
    """Scores of a network that says the same of all pairs."""
    return np.zeros(len(pairs.label))


@pytest.mark.parametrize("whole, fewest", [(True, 3), (True, 4), (False, 3)])
def test_of_files_there_is_what_the_field_reports(
    whole, fewest, set_of_files, tmp_path, monkeypatch, capsys, no_figures
):
    bounds = {"accuracy": (0.25, 0.75)}
    monkeypatch.setattr(metrics, "class_intervals", lambda *_: bounds)
    monkeypatch.setattr(metrics, "FEWEST", fewest)
    config, found = set_of_files, evaluated(set_of_files, 0.5)
    if not whole:
        pairs = data.sample_pairs(config, "test", 150)
        logits = np.random.default_rng(0).normal(pairs.label)
        found = scoring.evaluate_pairs(config, lambda *_: logits, None, pairs)
    few = {"way": 3, "shot": 1, "within": True, "error": 0.2, "interval": (0.15, 0.25)}
    found.metrics["few_shot"] = few | {"episodes": 1000, "facts": ["a", "b"]}
    splits = {"validation": found._replace(metrics=dict(found.metrics)), "test": found}
    report.write_report(config, tmp_path, 7, splits, constant)
    page = html.unescape((tmp_path / "evaluation" / "report.html").read_text())
    assert ("is not clearly better than comparing pixels" in page) == (not whole)
    values = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    printed = capsys.readouterr().out
    text = "\n3-way 1-shot within a folder: error 20.00 % (95 %: 15.00 to 25.00 %)"
    assert f"{text} of 1,000 episodes; a; b\n" in printed
    assert values["no_learning"]["untrained network"]["eer"] == 0.5
    assert ("recall_at_1" in values["no_learning"]["L2 distance of pixels"]) == whole
    if whole:
        ranked = {"recall_at_1", "map"} if fewest == 3 else set()  # of as many classes as there are
        assert values["intervals"].keys() == {"accuracy"} | ranked
        assert 0 < values["recall_at_1"] <= values["recall_at_5"] <= 1
        assert (values["queries"], values["classes"]) == (24, 3)
        interval = re.search(r"recall_at_1 +0\.\d+  0\.\d+ to \d", printed)
        assert (interval is not None) == (fewest == 3)
        assert "  95 % intervals are over 3 classes\n" in printed
    else:
        assert "  no recall_at_1, recall_at_5, map: they need every pair" in printed


def test_a_sample_has_no_interval_of_what_it_cannot_show(tiny, tmp_path, no_figures):
    pairs = data.sample_pairs(tiny, "test", 150)
    logits = np.random.default_rng(0).normal(pairs.label)
    found = scoring.evaluate_pairs(tiny, lambda *_: logits, None, pairs)
    report.write_report(tiny, tmp_path, 7, {"test": found}, None)
    values = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    missing = {name for name, value in values.items() if value is None}
    assert missing == {"tar_at_far_0.01", "tar_at_far_0.001"}
    assert set(values["intervals"]) == set(metrics.NAMES) - missing
    assert not (tmp_path / "evaluation" / "hardest.csv").exists()
    assert "<h2>Data" not in (tmp_path / "evaluation" / "report.html").read_text()


def test_a_part_of_the_given_pairs_is_not_called_all():
    values = {"exact": True, "wrong": 1, "pairs": 2000}
    given = SimpleNamespace(metrics=values, pairs=SimpleNamespace(class_ids=None))
    words = report.count_wrong(given)
    assert words == "1 wrong of 2,000 pairs (every given pair of the split)"
