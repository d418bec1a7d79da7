"""Plots eight pairs of a run's test split with the truth and the network's answer.

    python docs/pairs.py --workdir=runs/heldout

Label "same" above, "different" below: the hardest pair, one harder than 99.9 %, the median, the
easiest. p is the probability of "same". Writes docs/pairs.png.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from scipy.special import expit

from figures import new_figure, plot_pair
from model import create_model
from scoring import evaluate, load_variables, make_scorer
from settings import chosen_run, load_config


def main(workdir, output):
    config = load_config(workdir)
    model, names = create_model(config), ("different", "same")
    _, variables = load_variables(config, workdir, model, "best")
    _, pairs, scores = evaluate(config, make_scorer(model), variables, "test", 10**6)
    probability = expit(scores.logits)
    figure = new_figure(10, 3.6)
    for row, truth in enumerate((1, 0)):
        chosen = np.flatnonzero(pairs.label == truth)
        order = chosen[np.argsort(np.abs(truth - probability[chosen]), kind="stable")[::-1]]
        for column, index in enumerate(order[[0, len(order) // 1000, len(order) // 2, -1]]):
            axes = figure.add_subplot(2, 4, 4 * row + column + 1)
            plot_pair(axes, pairs, index)
            said = int(scores.predicted[index])
            title = f"label: {names[truth]}\nanswer: {names[said]} (p = {probability[index]:.3f})"
            axes.set_title(title, fontsize=11, color="black" if said == truth else "crimson")
    figure.savefig(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    main(chosen_run(parser.parse_args().workdir), Path(__file__).with_suffix(".png"))
