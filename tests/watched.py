"""Runs a program, and ends it with 99 at what no program of the project may do.

    python tests/watched.py train.py --workdir=...

That is: unpickling, unpacking an archive, connecting to another machine, listening for one, and
opening a file for writing that is neither in the workdir nor a cache nor temporary.
"""

import os
import runpy
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def watch(allowed, event, arguments):
    """An audit hook of Python."""
    never = ("pickle.find_class", "shutil.unpack_archive", "socket.connect")
    if event == "open":
        path, _, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
        if not writes or not isinstance(path, str) or path.startswith(allowed):
            return
    elif event not in never:
        return
    os.write(2, f"forbidden: {event} {arguments}\n".encode())
    os._exit(99)


def listening():
    """The sockets on which this process waits for others: inodes, as Linux counts them."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in open(f"/proc/self/net/{name}")]
    waiting = {f"socket:[{line[9]}]" for line in lines if line[3] == "0A"}
    links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
    return waiting & {os.readlink(link) for link in links if link.is_symlink()}


def main():
    sys.argv = [str(ROOT / sys.argv[1]), *sys.argv[2:]]
    (workdir,) = (option.split("=")[1] for option in sys.argv if option.startswith("--workdir"))
    caches = os.environ["JAX_COMPILATION_CACHE_DIR"], tempfile.gettempdir(), "/dev/null"
    allowed = (str(Path(workdir).absolute()), *caches)
    sys.path.insert(0, str(ROOT))
    sys.addaudithook(lambda event, arguments: watch(allowed, event, arguments))
    leave = os._exit  # which the programs themselves end with
    os._exit = lambda code: leave(99 if listening() else code)
    runpy.run_path(sys.argv[0], run_name="__main__")
    os._exit(0)


if __name__ == "__main__":
    main()
