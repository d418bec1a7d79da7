"""What a network must beat: comparing pixels, and itself before training, on the same pairs.

Of more than MOST_IMAGES images only FEW_PAIRS pairs are asked about, and that is said.
"""

import retrieval
from metrics import draw_rows, ranking_metrics
from model import create_model, init_variables
from shortcuts import pixel_scores
from spaces import sample

MOST_IMAGES = 1500  # of which every pair is asked about
FEW_PAIRS = 2000
COLUMNS = ("eer", "roc_auc", "recall_at_1")
UNTRAINED = "untrained network"


def measure(config, score, evaluation):
    """{name: {"eer", "roc_auc", perhaps "recall_at_1"}} without learning, of files.

    Where not all pairs are asked about, "pairs" is how many. `score` (scoring.make_scorer) is
    called: with several processes by all of them.
    """
    if config.data.source == "shapes":
        return {}
    pairs, found = evaluation.pairs, {}
    some = pairs if len(pairs.images) <= MOST_IMAGES else take(pairs, FEW_PAIRS)
    part = {"pairs": len(some.label)} if len(some.label) < len(pairs.label) else {}
    variables = init_variables(create_model(config), config)
    answers = pixel_scores(some) | {UNTRAINED: score(variables, some)}
    for name, scores in answers.items():
        values = ranking_metrics(scores, some.label, some.weight)
        if some.exact and some.class_ids is not None:
            values |= retrieval.measure(some, scores)[0]
        found[name] = {column: values[column] for column in COLUMNS if column in values} | part
    return found


def take(pairs, most):
    """The pairs, or so many drawn by their weight where they are more, with the images in them."""
    if len(pairs.label) <= most:
        return pairs
    rows, _ = draw_rows(pairs.weight, most)
    drawn = (field[rows] for field in (pairs.first, pairs.second, pairs.label))
    return sample(pairs.images, *drawn, None).compact()


def verdict(split, values, interval, lines):
    """A warning, where the network is not clearly better than comparing pixels; else None.

    values: its metrics; interval: of its EER, or None; lines: see `measure`.
    """
    eers = [line["eer"] for name, line in lines.items() if name != UNTRAINED]
    if not eers or None in (own := values["eer"], *eers):  # all pairs are of one kind
        return None
    pixels, most = min(eers), interval[1] if interval else own
    if most < pixels:
        return None
    bound = f", 95 % interval to {100 * most:.1f} %" if interval else ""
    network = f"warning: on the {split} the network (EER {100 * own:.1f} %{bound})"
    return f"{network} is not clearly better than comparing pixels (EER {100 * pixels:.1f} %)"


def table(values, lines):
    """The lines beside the network's own metrics: list of str, each of at most 62 letters."""
    texts = [f"{'beside no learning':<26}" + "".join(f"{name:>12}" for name in COLUMNS)]
    for name, line in ({"the network": values} | lines).items():
        numbers = (line.get(column) for column in COLUMNS)
        text = "".join(f"{'-' if x is None else f'{x:.6f}':>12}" for x in numbers)
        texts.append(f"  {name:<24}{text}")
    if "pairs" in line:
        texts.append(f"  without learning of {line['pairs']:,} drawn pairs")
    return texts
