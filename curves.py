"""The curves of a run for TensorBoard: written and read.

TensorBoard is imported in functions: without it only the curves are lost.
"""

import platform
import struct
import sys
import time

import jax


class Writer:
    """Writes curves into the folder of a run.

    If writing fails (a full disk), it warns once and writes no more; training goes on. Of several
    processes only the first writes.
    """

    def __init__(self, folder, start):
        """start: the step from which a training starts or resumes; later points are dropped."""
        self.path = folder / f"events.out.tfevents.{time.time_ns()}.{platform.node()}"
        self.works = jax.process_index() == 0
        self.add({"file_version": "brain.Event:2"})
        self.add({"step": start + 1, "session_log": {"status": "START"}})

    def write(self, step, values):
        """Writes {tag: number} of a step; a process that is killed then loses nothing of it."""
        points = [{"tag": tag, "simple_value": float(number)} for tag, number in values.items()]
        self.add({"step": step, "summary": {"value": points}})

    def add(self, event):
        """Appends an event to the file, which is not kept open."""
        if not self.works:
            return
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.summary.writer.record_writer import RecordWriter

            with open(self.path, "ab") as file:
                message = Event(wall_time=time.time(), **event)
                RecordWriter(file).write(message.SerializeToString())
        except (OSError, ImportError) as error:
            self.works = False
            print(f"warning: no more curves in {self.path.parent}: {error}", file=sys.stderr)


def read(workdir, *tags):
    """The curves of a run, for each tag a list of (step, value); none where TensorBoard lacks."""
    found = {tag: [] for tag in tags}
    try:
        for event in read_events(workdir):
            if event.HasField("session_log"):  # drops what a killed run wrote from this step on
                found = {tag: [p for p in found[tag] if p[0] < event.step] for tag in tags}
            for value in event.summary.value:
                if value.tag in found:
                    found[value.tag].append((event.step, value.simple_value))
    except ImportError as error:
        print(f"warning: the curves in {workdir} cannot be read: {error}", file=sys.stderr)
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
