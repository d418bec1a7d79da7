"""The curves of a run for TensorBoard: written by a thread (CLU), and read again."""

import importlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import jax


class Writer:
    """Writes for TensorBoard in a thread of its own: CLU's TensorFlow takes seconds to load.

    Where it fails, for want of room say, it warns once and writes no more: training goes on. Of
    several processes the first alone writes. A context manager, whose end waits for the thread.
    """

    def __init__(self, folder, start=None):
        """start: the step that a training goes on from; None for an evaluation."""
        self.folder, self.start, self.writer = folder, start, None
        self.thread = ThreadPoolExecutor(1, "curves")
        self.failed = jax.process_index() > 0
        self.submit(self.open)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.submit(lambda: self.writer.close())
        self.thread.shutdown()

    def write(self, kind, step, values):
        """Has the thread write {tag: value}; kind: "scalars", "images" or "texts", as in CLU."""

        def write():
            getattr(self.writer, f"write_{kind}")(step, values)
            self.writer.flush()

        self.submit(write)

    def flush(self):
        """Waits until everything is written."""
        self.thread.submit(int).result()

    def submit(self, function):
        self.thread.submit(self.attempt, function)

    def attempt(self, function):
        """The thread's part: calls a function; after the first that fails no other is called."""
        if self.failed:
            return
        try:
            function()
        except Exception as error:  # TensorFlow's own kinds
            self.failed = True
            reason = " ".join(str(error).split())[:200]
            print(f"warning: no more curves in {self.folder}: {reason}", file=sys.stderr)

    def open(self):
        if self.start is not None:
            mark_start(self.folder, self.start)
        create = import_metric_writers().create_default_writer
        self.writer = create(self.folder, asynchronous=False)


def mark_start(folder, step):
    """Tells TensorBoard's readers that points after this step, of a killed run, come again."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))
    writer.add_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
    writer.close()


def import_slow():
    """Imports what takes seconds, for a thread beside the start of a program."""
    for load in (import_metric_writers, "scipy.stats", "sklearn.metrics", "matplotlib.figure"):
        try:
            importlib.import_module(load) if isinstance(load, str) else load()
        except ImportError:
            pass  # said where it is needed


def import_metric_writers():
    """Imports CLU's writers: not at the top, because the TensorFlow they load takes seconds."""
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else TensorFlow says that it uses them
    from clu import metric_writers

    return metric_writers


def read(workdir, *tags):
    """The points of a run's curves, by tag: [(step, value)] each."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    events = EventAccumulator(str(workdir), size_guidance={"tensors": 0})
    events.Reload()
    known = events.Tags()["tensors"]
    found = [events.Tensors(tag) if tag in known else [] for tag in tags]
    return [[(e.step, float(tensor_util.make_ndarray(e.tensor_proto))) for e in f] for f in found]
