"""The curves of a run for TensorBoard: written and read.

TensorBoard is imported in functions: without it only the curves are lost.
"""

import platform
import struct
import sys
import time

import jax


class Writer:
    """Writes curves into the folder of a run; a context manager.

    If writing fails (a full disk), it warns once and writes no more; training goes on. Of several
    processes only the first writes.
    """

    def __init__(self, folder, start):
        """start: the step from which a training starts or resumes; later points are dropped."""
        self.folder, self.start, self.file = folder, start, None

    def __enter__(self):
        if jax.process_index() == 0:
            self.attempt(self.open)
        return self

    def __exit__(self, *error):
        if self.file:
            self.file.close()

    def write(self, step, values):
        """Writes {tag: number} of a step; a killed process loses nothing of it."""
        if self.file:
            self.attempt(self.write_scalars, step, values)

    def attempt(self, function, *arguments):
        try:
            function(*arguments)
        except (OSError, ImportError) as error:
            self.file = None
            print(f"warning: no more curves in {self.folder}: {error}", file=sys.stderr)

    def open(self):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{time.time_ns()}.{platform.node()}"
        self.file = RecordWriter(open(self.folder / name, "xb"))
        self.add(Event(file_version="brain.Event:2"))
        self.add(Event(step=self.start + 1, session_log=SessionLog(status=SessionLog.START)))

    def write_scalars(self, step, values):
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        for tag, value in values.items():
            self.add(Event(step=step, summary=scalar_pb(tag, float(value))))

    def add(self, event):
        event.wall_time = time.time()
        self.file.write(event.SerializeToString())
        self.file.flush()


def read(workdir, *tags):
    """The curves of a run, for each tag a list of (step, value); none where TensorBoard lacks."""
    try:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        print(f"warning: the curves in {workdir} cannot be read: {error}", file=sys.stderr)
        return [[] for _ in tags]

    found = {tag: [] for tag in tags}
    for event in read_events(workdir):
        if event.session_log.status == SessionLog.START:  # what a killed run wrote after this step
            found = {tag: [p for p in found[tag] if p[0] < event.step] for tag in tags}
        for value in event.summary.value:
            if value.tag in found:
                found[value.tag].append((event.step, float(make_ndarray(value.tensor))))
    return list(found.values())


def read_events(workdir):
    """Yields the events of a run, of each file up to where a killed process cut it off."""
    from tensorboard.compat.proto.event_pb2 import Event

    for path in sorted(workdir.glob("events*")):
        with open(path, "rb") as file:
            while len(header := file.read(12)) == 12:  # the length, and its checksum
                (length,) = struct.unpack("<Q", header[:8])
                record = file.read(length + 4)  # with its checksum
                if len(record) == length + 4:
                    yield Event.FromString(record[:-4])
