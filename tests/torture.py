"""Ends training at random moments, again and again; the last start must reach the same bits.

    python tests/torture.py --minutes=15

Each run has a tiny network and a checkpoint every other step. It is killed (SIGKILL) or told to end
(SIGTERM) after a random time, start-up and saving included, and started again. Reference: one run
without faults. Prints a table; exits 1 unless every run ended with the reference's bits and curves,
without a gap, and no step was lost to SIGTERM.
"""

import argparse
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from conftest import ENVIRONMENT, ROOT, tiny_options
from test_train import curve, digest

STEPS = 80
OPTIONS = tiny_options(num_steps=STEPS, log_every_steps=1, eval_every_steps=2)


def start(workdir):
    command = [sys.executable, str(ROOT / "train.py"), f"--workdir={workdir}", *OPTIONS]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def torture(workdir, faults, chance, longest):
    """Ends a run so many times and then lets it finish: [(signal, steps done and lost)], exit code.

    A run that is complete before is left alone.
    """
    found, lasts = [], []
    for fault in range(faults + 1):
        process = start(workdir)
        if fault < faults:
            kind = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
            time.sleep(chance.uniform(0, longest))
            process.send_signal(kind)
        printed, _ = process.communicate()
        began = re.search(r"resumed at step (\d+)|from the start", printed)
        reached = [int(step) for step in re.findall(r"^step (\d+):", printed, re.MULTILINE)]
        lasts.append((int(began[1] or 0) if began else None, max(reached, default=None)))
        if process.returncode == 0:
            break
        found.append(kind.name)
    lost, done = [], 0
    for resumed, reached in lasts:  # a start that was ended early may have come to neither
        lost.append(0 if resumed is None else max(0, done - resumed))
        done = next(step for step in (reached, resumed, done) if step is not None)
    return list(zip(found, lost[1:], strict=False)), process.returncode


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--faults", type=int, default=20, help="of each run, at most")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    options = parser.parse_args()
    chance, end = random.Random(options.seed), time.monotonic() + 60 * options.minutes
    print(f"seed {options.seed}", flush=True)
    faults, lost, mismatches, runs = Counter(), Counter(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):  # the second finds compiled programs, as those that follow
            whole, began = Path(folder) / f"whole{_}", time.monotonic()
            assert start(whole).wait() == 0
            longest = time.monotonic() - began
        expected = digest(whole), curve(whole, "train/loss"), curve(whole, "validation/loss")
        while time.monotonic() < end:
            workdir = Path(folder) / f"run{runs}"
            rows, code = torture(workdir, options.faults, chance, longest)
            runs += 1
            for kind, steps in rows:
                faults[kind] += 1
                lost[kind] += steps
            found = digest(workdir), curve(workdir, "train/loss"), curve(workdir, "validation/loss")
            right = code == 0 and found == expected
            mismatches += not right
            print(f"run {runs}: {rows}, {'same bits' if right else 'OTHER BITS'}", flush=True)
    print(f"\n{'':<20}{'SIGKILL':>10}{'SIGTERM':>10}")
    for name, counts in (("faults", faults), ("steps done again", lost)):
        print(f"{name:<20}{counts['SIGKILL']:>10}{counts['SIGTERM']:>10}")
    print(f"{'runs':<20}{runs:>10}\n{'other bits or curves':<20}{mismatches:>10}")
    return 1 if mismatches or lost["SIGTERM"] else 0


if __name__ == "__main__":
    sys.exit(main())
