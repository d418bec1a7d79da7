"""Ends training at random moments, again and again; the last start must reach the same bits.

    python tests/torture.py --minutes=15

Each run has a tiny network and a checkpoint every other step. It is killed (SIGKILL) or told to end
(SIGTERM) after a random time, start-up and saving included, and started again. Reference: one run
without faults. Prints a table; exits 1 unless every run ended with the reference's bits.
"""

import argparse
import itertools
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from conftest import ENVIRONMENT, ROOT, tiny_options
from test_train import curve, digest

OPTIONS = tiny_options(num_steps=60, log_every_steps=1, eval_every_steps=2)


def start(workdir):
    command = [sys.executable, str(ROOT / "train.py"), f"--workdir={workdir}", *OPTIONS]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def torture(workdir, faults, chance, longest):
    """Ends a run so many times and then lets it finish; returns what happened, one row a fault."""
    rows = []
    for _ in range(faults):
        kind = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        process = start(workdir)
        time.sleep(chance.uniform(0, longest))
        process.send_signal(kind)
        printed, errors = process.communicate()
        began = re.search(r"resumed at step (\d+)", printed)
        reached = [int(step) for step in re.findall(r"^step (\d+):", printed, re.MULTILINE)]
        rows.append((kind.name, int(began[1]) if began else 0, max(reached, default=0), errors))
        if process.returncode == 0:
            break
    process = start(workdir)
    printed, errors = process.communicate()
    began = re.search(r"resumed at step (\d+)", printed)
    rows.append(("none", int(began[1]) if began else 0, 60, errors))
    return rows, process.returncode


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--faults", type=int, default=10, help="of each run")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    options = parser.parse_args()
    chance, end = random.Random(options.seed), time.monotonic() + 60 * options.minutes
    print(f"seed {options.seed}", flush=True)
    total = {"SIGKILL": 0, "SIGTERM": 0}
    runs = lost = mismatches = 0
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        assert start(Path(folder) / "whole").wait() == 0
        longest = time.monotonic() - began
        expected = digest(Path(folder) / "whole")
        while time.monotonic() < end:
            workdir = Path(folder) / f"run{runs}"
            rows, code = torture(workdir, options.faults, chance, longest)
            runs += 1
            for (kind, _, reached, _), (_, resumed, _, _) in itertools.pairwise(rows):
                total[kind] += 1
                lost += max(0, reached - resumed) if kind == "SIGTERM" else 0
            steps = [step for step, _ in curve(workdir, "validation/loss")]
            right = code == 0 and digest(workdir) == expected and steps == list(range(2, 61, 2))
            mismatches += not right
            print(
                f"run {runs}: {len(rows) - 1} faults, {'same bits' if right else rows}", flush=True
            )
    print(f"\n{'faults':<30}{'count':>8}")
    for kind, count in total.items():
        print(f"{kind:<30}{count:>8}")
    for name, count in {
        "runs": runs,
        "runs with other bits or curves": mismatches,
        "steps lost to SIGTERM": lost,
    }.items():
        print(f"{name:<30}{count:>8}")
    return 1 if mismatches or lost else 0


if __name__ == "__main__":
    sys.exit(main())
