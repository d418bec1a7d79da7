"""What an evaluation writes into workdir/evaluation: metrics.json, figures and report.html."""

import base64
import csv
import html
from pathlib import Path

import jax
import numpy as np
from scipy.special import expit

import baselines
import data
import figures
import metrics
import retrieval
import runtime
import settings
from errors import UserError

MOST_HARDEST = 200  # pairs in hardest.csv


def write_report(config, workdir, step, evaluations, score):
    """Prints a table of {split: Evaluation}, writes the files of the last; raises UserError.

    `score` (scoring.make_scorer) is called: with several processes by all; the first one writes.
    """
    split, evaluation = list(evaluations.items())[-1]
    lines = baselines.measure(config, score, evaluation)
    if jax.process_index():
        return
    bounds = complete(config, evaluation, lines)
    table = format_table(step, evaluations, bounds)
    if warning := baselines.verdict(split, evaluation.metrics, bounds.get("eer"), lines):
        table += f"\n{warning}"
    print(table)
    values = evaluation.metrics | {"step": step, "split": split}
    values |= {"intervals": bounds} if bounds else {}
    folder = workdir / "evaluation"
    try:
        folder.mkdir(exist_ok=True)
        settings.write_json(values, folder / "metrics.json")
        write_page(config, workdir, split, evaluation, table)
        write_hardest(config, folder, evaluation)
    except OSError as error:
        text = f"the report cannot be written: {error}; python evaluate.py writes it again"
        raise UserError(text) from None
    print(f"wrote {folder / 'report.html'}, metrics.json and figures beside it")


def complete(config, evaluation, lines):
    """Adds to the metrics what they lack of files; returns 95 % intervals {name: (low, high)}.

    lines: of `baselines.measure`. Retrieval takes every pair, of known classes.
    """
    values, pairs, bounds = evaluation.metrics, evaluation.pairs, {}
    if not pairs.exact:
        bounds = metrics.intervals(*evaluation.scores)
    elif config.data.source != "shapes" and pairs.class_ids is not None:
        found, bounds = retrieval.measure(pairs, evaluation.scores.logits)
        bounds = metrics.class_intervals(evaluation.scores, pairs) | bounds
        values |= found | {"classes": len(np.unique(pairs.class_ids))}
    values |= {"no_learning": lines} if lines else {}
    return {name: two for name, two in bounds.items() if values[name] is not None}


def scalars(split, evaluation):
    """{tag: number} of an evaluation, for TensorBoard."""
    numbers = {name: evaluation.metrics[name] for name in (*metrics.NAMES, "wrong")}
    return {f"{split}/{name}": value for name, value in numbers.items() if value is not None}


def describe(step, split, evaluation):
    """One line for the console."""
    m = evaluation.metrics
    text = f"step {step}: {split} loss {m['loss']:.4f}, accuracy {m['accuracy']:.4f}"
    return f"{text}, {m['wrong']:,} wrong of {m['pairs']:,} pairs"


def count_wrong(evaluation):
    """How many pairs are wrong, of how many and of which, in words."""
    m, which = evaluation.metrics, "a sample"
    if m["exact"]:
        given = evaluation.pairs.class_ids is None
        which = "every given pair of the split" if given else "every ordered pair, weighted"
    return f"{m['wrong']:,} wrong of {m['pairs']:,} pairs ({which})"


def format_table(step, evaluations, bounds):
    """A row per metric, a column per split; of the last intervals and the confusion matrix."""
    lines = [f"{f'step {step}':<16}" + "".join(f"{split:>12}" for split in evaluations)]
    lines[0] += f"  {[*evaluations][-1]}, 95 %" if bounds else ""
    last = [*evaluations.values()][-1]
    for name in (*metrics.NAMES, *(name for name in retrieval.NAMES if name in last.metrics)):
        values = [one.metrics.get(name, "") for one in evaluations.values()]
        texts = (x if x == "" else "too few" if x is None else f"{x:.6f}" for x in values)
        interval = "  {:.6f} to {:.6f}".format(*bounds[name]) if name in bounds else ""
        lines.append(f"{name:<16}" + "".join(f"{text:>12}" for text in texts) + interval)
    (right0, wrong0), (wrong1, right1) = last.metrics["confusion"]
    lines += [
        f"{[*evaluations][-1]}: {count_wrong(last)}",
        f"  different: {right0:,} right, {wrong0:,} called same",
        f"  same: {right1:,} right, {wrong1:,} called different",
        f"  called same from a probability of {last.metrics['threshold']:.6g} on",
    ]
    return "\n".join(lines + format_more(last, bounds))


def format_more(one, bounds):
    """What an Evaluation has only of files, or where it was asked for: list of str, a line each."""
    m, lines = one.metrics, []
    if "classes" in m:
        drawn = len(one.pairs.label) > metrics.MOST_RESAMPLED
        text = f", from {metrics.MOST_RESAMPLED:,} pairs drawn from these" * drawn
        if bounds:
            lines.append(f"  95 % intervals are over {m['classes']:,} classes{text}")
        elif m["classes"] < metrics.FEWEST:
            lines.append(f"  no 95 % intervals: {m['classes']} classes are too few")
        else:
            lines.append("  no 95 % intervals: all resampled classes give the same")
    elif "no_learning" in m:
        lines.append(f"  no {', '.join(retrieval.NAMES)}: they need every pair, of known classes")
    if "no_learning" in m:
        lines += baselines.table(m, m["no_learning"])
    if few := m.get("few_shot"):
        low, high = (100 * bound for bound in few["interval"])
        text = f"{few['way']}-way {few['shot']}-shot{' within a folder' * few['within']}: error"
        text += f" {100 * few['error']:.2f} % (95 %: {low:.2f} to {high:.2f} %)"
        lines.append("; ".join([f"{text} of {few['episodes']:,} episodes", *few["facts"]]))
    return lines


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ max-width: 75rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.1rem; }}
.headline {{ font-size: 2.2rem; font-weight: 600; margin: 0; }}
main {{ display: grid; gap: 1.5rem 2rem; grid-auto-flow: dense;
  grid-template-columns: repeat(auto-fit, minmax(min(31rem, 100%), 1fr)); }}
section {{ min-width: 0; }} .pairs {{ grid-column: 1 / -1; }}
img {{ max-width: 100%; background: white; border-radius: 8px; }}
pre {{ white-space: pre-wrap; font-size: min(0.8rem, 2.4vw); }}  /* 62 letters fit */
</style>
<h1>{title}</h1>
<p class="headline">{headline}</p>
<p>{summary}</p>
<main>{sections}</main>
</html>
"""


def write_page(config, workdir, split, evaluation, table):
    """Writes the figures, and report.html with all of them inside."""
    m, folder = evaluation.metrics, workdir / "evaluation"
    sections = {"metrics": f"<pre>{html.escape(table)}</pre>"}
    for name, plot in figures.plot_figures(workdir, evaluation).items():
        png = figures.render(plot)
        (folder / f"{name}.png").write_bytes(png)
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        sections[name] = f'<img alt="{name}" src="{source}">'
    if facts := data.describe(config):
        sections["data"] = "".join(f"<p>{html.escape(fact)}</p>" for fact in facts)
    values = runtime.last_versions(workdir) | settings.flatten(config.to_dict())
    text = html.escape("\n".join(f"{key}: {value}" for key, value in values.items()))
    sections["config"] = f"<pre>{text}</pre>"
    parts = [
        f'<section class="{name}"><h2>{name.capitalize()}</h2>{content}</section>'
        for name, content in sections.items()
    ]
    page = PAGE.format(
        title=html.escape(f"{workdir.name}: {split}"),
        headline=f"{100 * m['accuracy']:.2f} % right",
        summary=f"{count_wrong(evaluation)}, same from a probability of {m['threshold']:.6g} on.",
        sections="\n".join(parts),
    )
    (folder / "report.html").write_text(page, "utf-8", "backslashreplace")  # as a name of a file


def write_hardest(config, folder, evaluation):
    """The hardest pairs of files as a list that configs/pairs.py reads, with the answers."""
    root = Path(config.data.path).absolute()
    root = {"folder": root, "pairs": root.parent}.get(config.data.source)
    if root is None:
        return
    pairs, scores = evaluation.pairs, evaluation.scores
    probability = expit(scores.logits)
    with open(folder / "hardest.csv", "w", newline="", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["image1", "image2", "label", "probability", "answer"])
        for i in figures.hardest_first(pairs, probability)[:MOST_HARDEST]:
            paths = (root / pairs.names[k] for k in (pairs.first[i], pairs.second[i]))
            numbers = int(pairs.label[i]), f"{probability[i]:.6f}", int(scores.predicted[i])
            table.writerow([*paths, *numbers])
