"""The curves of a run for TensorBoard: written in a thread (with CLU), and read.

CLU and TensorBoard are imported in functions: they take seconds, and CLU loads TensorFlow.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import jax


class Writer:
    """Writes the curves of a training into its folder, in a thread.

    If writing fails (a full disk), it warns once and writes no more; training goes on. Of several
    processes only the first writes. A context manager: on exit it waits for the thread.
    """

    def __init__(self, folder, start):
        """start: the step from which the training starts or resumes."""
        self.folder, self.start, self.writer = folder, start, None
        self.thread = ThreadPoolExecutor(1, "curves")
        self.failed = jax.process_index() > 0
        self.submit(self.open)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.submit(lambda: self.writer.close())
        self.thread.shutdown()

    def write(self, step, values):
        """Writes {tag: number} of a step, in the thread."""

        def write():
            self.writer.write_scalars(step, values)
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
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else TensorFlow logs a line about it
        mark_start(self.folder, self.start)
        from clu import metric_writers

        self.writer = metric_writers.create_default_writer(self.folder, asynchronous=False)


def mark_start(folder, step):
    """Tells TensorBoard to drop the points after this step, which a killed run wrote already."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))
    writer.add_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
    writer.close()


def read(workdir, *tags):
    """The curves of a run, for each tag a list of (step, value); none where TensorBoard lacks."""
    try:
        from tensorboard.backend.event_processing import plugin_event_accumulator
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        print(f"warning: the curves in {workdir} cannot be read: {error}", file=sys.stderr)
        return [[] for _ in tags]

    sizes = {"scalars": 0}  # all points are read
    events = plugin_event_accumulator.EventAccumulator(str(workdir), tensor_size_guidance=sizes)
    known = events.Reload().Tags()["tensors"]
    curves = [events.Tensors(tag) if tag in known else [] for tag in tags]
    return [[(p.step, make_ndarray(p.tensor_proto).item()) for p in points] for points in curves]
