"""Cross-validation: trains once for each fold, which is then the test, and sums the tests up.

    python folds.py --config=configs/folder.py --config.data.path=photos --config.data.folds=5

Takes the flags of train.py. Fold i is a run of its own in WORKDIR/fold-i. The same command
continues what was interrupted. WORKDIR/folds.json has the metrics of each fold, too.
"""

from errors import UserError, first_five  # first: from here on a missing package is one line

# isort: split
import json
import signal
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import command_line
import hosts
import metrics
import retrieval
import settings
import train

TRAIN = Path(__file__).with_name("train.py")


def main(options):
    if hosts.read_cluster(options):
        raise UserError("folds.py trains on one host: start it there alone, without --coordinator")
    config, name = command_line.read_config(options)
    if not config.data.folds or config.data.fold:
        text = "say in how many with --config.data.folds=5, and no fold: each is trained with"
        raise UserError(f"folds.py divides the data into folds: {text}")
    workdir = Path(options.workdir or f"runs/{name}").absolute()
    if (workdir / "config.json").exists():
        raise UserError(f"--workdir={workdir}: a run of train.py is there; name another folder")
    found = [train_fold(workdir, fold, config.data.folds) for fold in range(config.data.folds)]
    summarize(workdir, found)


def train_fold(workdir, fold, count):
    """Runs train.py with a fold: the metrics of its test, a dict. Exits where training fails."""
    print(f"fold {fold} of {count}: {workdir / f'fold-{fold}'}", flush=True)
    given = (f"--workdir={workdir / f'fold-{fold}'}", f"--config.data.fold={fold}")
    with subprocess.Popen([sys.executable, TRAIN, *sys.argv[1:], *given]) as training:
        signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches training itself: it saves
        signal.signal(signal.SIGTERM, lambda number, _: training.send_signal(number))
        code = training.wait()
    if code:
        code = code if code > 0 else 128 - code  # of a signal, as a shell has it
        text = f"fold {fold} of {count} ended with exit code {code}; the same command continues"
        print(f"error: {text}", file=sys.stderr)
        raise SystemExit(code)
    return json.loads((workdir / f"fold-{fold}/evaluation/metrics.json").read_text())


def summarize(workdir, found):
    """Prints and writes mean and standard deviation (n - 1) of the metrics that all folds have.

    A metric that is unknown in some of the folds is left out, and that is said.
    """
    all_names = (*metrics.NAMES, *retrieval.NAMES)
    counts = {name: sum(one.get(name) is not None for one in found) for name in all_names}
    names = [name for name, count in counts.items() if count == len(found)]
    if lost := [name for name, count in counts.items() if 0 < count < len(found)]:
        print(f"left out, unknown in a fold: {len(lost)} ({first_five(lost)})")
    rows = {f"fold {i}": {name: one[name] for name in names} for i, one in enumerate(found)}
    values = {name: [one[name] for one in found] for name in names}
    rows["mean"] = {name: mean(numbers) for name, numbers in values.items()}
    rows["standard deviation"] = {name: stdev(numbers) for name, numbers in values.items()}
    settings.write_json(rows, workdir / "folds.json")
    print(f"{f'{len(found)} tests':<16}{'mean':>12}{'deviation':>12}")
    for name, numbers in values.items():
        print(f"{name:<16}{mean(numbers):>12.6f}{stdev(numbers):>12.6f}")
    print(f"wrote {workdir / 'folds.json'}")


if __name__ == "__main__":
    command_line.run(train.define_flags, main)
