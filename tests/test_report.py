import html.parser
import json
import re
from types import SimpleNamespace

import pytest

import metrics
import report


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


def test_the_column_of_intervals_says_whose_they_are():
    values = dict.fromkeys(metrics.NAMES, 0.5) | {"confusion": [[1, 0], [0, 1]], "threshold": 0.5}
    one = SimpleNamespace(metrics=values | {"pairs": 2, "wrong": 0, "exact": False})
    table = report.format_table(7, {"validation": one, "test": one}, {"loss": (0.25, 0.75)})
    head, loss, accuracy, *_ = table.splitlines()
    assert head.endswith("validation          test  test, 95 %")
    assert loss.endswith("0.500000  0.250000 to 0.750000") and accuracy.endswith("0.500000")


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
