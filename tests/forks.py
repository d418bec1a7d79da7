"""Runs programs of the project for tests, each in a fork of one process that has imported them all.

Reads a line of JSON, [program, options, folder], and answers [exit code, output, errors]. A start
of Python with its imports takes 2 s; a fork takes none.
"""

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import audit
import command_line
import evaluate
import export
import train

PROGRAMS = {"audit.py": audit, "evaluate.py": evaluate, "export.py": export, "train.py": train}


def in_fork(function):
    """Calls a function in a fork: (exit code, output, errors, seconds of a processor)."""
    files = (tempfile.TemporaryFile("w+", errors="replace") for _ in range(2))
    with next(files) as output, next(files) as errors:
        child = os.fork()
        if not child:
            os.dup2(output.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            try:
                function()
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        _, status, used = os.wait4(child, 0)
        printed = [(file.seek(0), file.read())[1] for file in (output, errors)]
    return os.waitstatus_to_exitcode(status), *printed, used.ru_utime + used.ru_stime


def run(program, options, folder):
    """[exit code, output, errors] of one program, run in a folder."""

    def start():
        os.chdir(folder)
        sys.argv = [str(ROOT / program), *options]
        command_line.run(PROGRAMS[program].define_flags, PROGRAMS[program].main)

    return in_fork(start)[:3]


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)
