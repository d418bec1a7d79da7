"""The curves of a run for TensorBoard: written in a thread (with CLU), and read.

CLU and TensorBoard are imported in functions: they take seconds, and CLU loads TensorFlow.
"""

import importlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import jax


class Writer:
    """Writes for TensorBoard in a thread.

    If writing fails (a full disk), it warns once and writes no more; training goes on. Of several
    processes only the first writes. A context manager: on exit it waits for the thread.
    """

    def __init__(self, folder, start=None):
        """start: the step from which a training starts or resumes; None for an evaluation."""
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
        """Writes {tag: value} in the thread; kind: "scalars" or "images", as in CLU."""

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
        """The thread's part: calls a function, unless one has failed before."""
        if self.failed:
            return
        try:
            function()
        except Exception as error:  # of kinds that TensorFlow defines
            self.failed = True
            reason = " ".join(str(error).split())[:200]
            print(f"warning: no more curves in {self.folder}: {reason}", file=sys.stderr)

    def open(self):
        if self.start is not None:
            mark_start(self.folder, self.start)
        create = import_metric_writers().create_default_writer
        self.writer = create(self.folder, asynchronous=False)


def mark_start(folder, step):
    """Tells TensorBoard to drop the points after this step, which a killed run wrote already."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))
    writer.add_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
    writer.close()


def import_slow():
    """Imports in advance what takes seconds, for a thread while a program starts."""
    # What fails here is raised again where the package is needed. SystemError: before Python 3.11.8
    # two threads that parse Python code at once disturb each other (CPython's issue 106905).
    with suppress(ImportError, SystemError):
        import_metric_writers()
    for name in ("scipy.stats", "sklearn.metrics", "matplotlib.figure"):
        with suppress(ImportError, SystemError):
            importlib.import_module(name)


def import_metric_writers():
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else TensorFlow logs a line about it
    from clu import metric_writers

    return metric_writers


def read(workdir, *tags):
    """The curves of a run, for each tag a list of (step, value); none where TensorBoard lacks."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.util import tensor_util
    except ImportError as error:
        print(f"warning: the curves in {workdir} cannot be read: {error}", file=sys.stderr)
        return [[] for _ in tags]

    events = EventAccumulator(str(workdir), size_guidance={"tensors": 0})
    events.Reload()
    known = events.Tags()["tensors"]
    curves = [events.Tensors(tag) if tag in known else [] for tag in tags]
    value = tensor_util.make_ndarray
    return [[(p.step, float(value(p.tensor_proto))) for p in points] for points in curves]
