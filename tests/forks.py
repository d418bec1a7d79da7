"""Runs programs of the project for tests, each in a fork of one process that has imported them all.

Reads a line of JSON, [program, options, folder], and answers [exit code, output, errors]. A start
of Python with its imports takes 2 s; a fork takes none.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import audit
import command_line
import evaluate
import export
import train

PROGRAMS = {"audit.py": audit, "evaluate.py": evaluate, "export.py": export, "train.py": train}


def run(program, options, folder):
    """[exit code, output, errors] of one program, run in a folder."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if not child:
            os.dup2(output.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            os.chdir(folder)
            sys.argv = [str(ROOT / program), *options]
            command_line.run(PROGRAMS[program].define_flags, PROGRAMS[program].main)
        _, status = os.waitpid(child, 0)
        printed = [(file.seek(0), file.read())[1] for file in (output, errors)]
        return os.waitstatus_to_exitcode(status), *printed


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)
