"""The ops that a process runs, and when: TensorFlow's own profiler.

It takes 5 to 10 % of a step (checked with TensorFlow 2.21). Every kernel that
runs leaves an event "name:type" on its thread; others are no ops.
"""

import glob
import os
import re
from typing import Any

import tensorflow as tf

# Checked with TensorFlow 2.21: the profiler's file, and which ops there are.
from tensorflow.python.framework import op_def_registry
from tensorflow.tsl.profiler.protobuf import xplane_pb2

_EVERY_OP = 3  # of the profiler's levels
_OP = re.compile(r"([^:\s]+):(\w+)")
_CPU = "/host:CPU"
_CLOCK = "Task Environment"

Events = list[list[Any]]


def start(directory: str) -> None:
  """Starts the profiler of this process."""
  options = tf.profiler.experimental.ProfilerOptions(
    host_tracer_level=_EVERY_OP, python_tracer_level=0, device_tracer_level=0
  )
  tf.profiler.experimental.start(directory, options)


def stop(directory: str) -> Events:
  """Stops it and returns what ran since.

  Args:
    directory: as it was given to `start`.

  Returns:
    [op, type, thread, begin, end] of each op; times are microseconds since the
    epoch.
  """
  tf.profiler.experimental.stop()
  (path,) = glob.glob(
    os.path.join(glob.escape(directory), "**", "*.xplane.pb"), recursive=True
  )
  with open(path, "rb") as file:
    space = xplane_pb2.XSpace.FromString(file.read())
  planes = {plane.name: plane for plane in space.planes}
  return _op_events(planes[_CPU], _start_us(planes[_CLOCK]))


def _start_us(plane) -> float:
  """Returns when the profiler started, which all times are relative to."""
  (start_ns,) = (
    stat.uint64_value
    for stat in plane.stats
    if plane.stat_metadata[stat.metadata_id].name == "profile_start_time"
  )
  return start_ns / 1000


def _op_events(plane, start_us: float) -> Events:
  ops = {}
  for key, metadata in plane.event_metadata.items():
    match = _OP.fullmatch(metadata.name)
    if match and op_def_registry.get(match[2]) is not None:
      ops[key] = (match[1], match[2])
  events = []
  for thread, line in enumerate(plane.lines):
    line_us = start_us + line.timestamp_ns / 1000
    for event in line.events:
      if event.metadata_id in ops:
        begin = line_us + event.offset_ps / 1e6
        end = begin + event.duration_ps / 1e6
        events.append([*ops[event.metadata_id], thread, begin, end])
  return events
