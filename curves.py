"""The curves of a run for TensorBoard: written in a thread (with CLU), and read.

CLU and TensorBoard are imported in functions: they take seconds, and CLU loads TensorFlow.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import jax

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else TensorFlow logs two lines about it


class Writer(AbstractContextManager):
    """Writes the curves of a training into its folder, in a thread.

    If writing fails (a full disk), it warns once and writes no more; training goes on. Of several
    processes only the first writes. A context manager: on exit it waits for the thread.
    """

    def __init__(self, folder, start):
        """start: the step from which the training starts or resumes."""
        self.folder, self.writer = folder, None
        self.thread = ThreadPoolExecutor(1, "curves")
        self.failed = jax.process_index() > 0
        self.thread.submit(self.attempt, self.open, start)

    def __exit__(self, *error):
        self.thread.submit(self.attempt, lambda: self.writer.close())
        self.thread.shutdown()

    def write(self, step, values):
        """Writes {tag: number} of a step, in the thread."""
        self.thread.submit(self.attempt, lambda: self.writer.write_scalars(step, values))
        self.thread.submit(self.attempt, lambda: self.writer.flush())

    def flush(self):
        """Waits until everything is written."""
        self.thread.submit(int).result()

    def attempt(self, function, *values):
        """The thread's part: calls a function, unless one has failed before."""
        try:
            if not self.failed:
                function(*values)
        except Exception as error:  # of kinds that TensorFlow defines
            self.failed = True
            reason = " ".join(str(error).split())[:200]
            print(f"warning: no more curves in {self.folder}: {reason}", file=sys.stderr)

    def open(self, start):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        # TensorBoard drops the points after this step, which a killed run wrote already.
        events = EventFileWriter(str(self.folder))
        events.add_event(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))
        events.close()
        from clu import metric_writers

        self.writer = metric_writers.create_default_writer(self.folder, asynchronous=False)


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
