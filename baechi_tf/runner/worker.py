"""One process of a run: a server, or the client that loads models and steps.

Answers questions, one a line, see `child`. Each is a function below; an error
of TensorFlow or of the system is an answer too.
"""

import json
import os
import queue
import resource
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from baechi_tf.runner import private_network
from baechi_tf.runner.tasks import Task

_ANSWERS = {}
_RSS_UNIT = 1024  # of /proc and of getrusage on Linux


def _answers(function):
  _ANSWERS[function.__name__] = function
  return function


class Worker:
  """The state that a process keeps between questions.

  Attributes:
    settings: how TensorFlow is set up, as `setup` was asked.
    models: loaded steps, by key.
    server: TensorFlow's server, once it runs.
  """

  def __init__(self):
    self.settings: Mapping[str, Any] = {}
    self.models: dict[str, Any] = {}
    self.server = None


@_answers
def setup(worker: Worker, settings: Mapping[str, Any]) -> dict[str, Any]:
  """Pins this process and moves it to its network, before it has threads.

  The settings' `directory` is the run's, which this process removes if the one
  that asks is killed.
  """
  worker.settings = settings
  if settings["cores"]:
    os.sched_setaffinity(0, settings["cores"])
  network = settings["network"]
  if network == "new":
    private_network.create()
  elif network is not None:
    private_network.join(network)
  return {"pid": os.getpid()}


@_answers
def serve(worker: Worker, question: Mapping[str, Any]) -> dict[str, Any]:
  """Starts a server for the task."""
  import tensorflow as tf

  from baechi_tf.runner import client

  config = tf.compat.v1.ConfigProto(
    device_count={"CPU": worker.settings["num_cpus"]},
    intra_op_parallelism_threads=worker.settings["intra_op"],
    inter_op_parallelism_threads=client.num_ops_at_once(),
  )
  worker.server = tf.distribute.Server(
    tf.train.ClusterSpec(_spec(question["cluster"])),
    job_name=question["job"],
    task_index=question["index"],
    config=config,
  )
  return usage(worker, {})


@_answers
def connect(worker: Worker, question: Mapping[str, Any]) -> dict[str, Any]:
  """Makes this process the client: one of the tasks, or alone."""
  import tensorflow as tf

  from baechi_tf.runner import client

  task = Task(
    question["job"], question["index"], (), worker.settings["num_cpus"]
  )
  client.become_client(
    task, _spec(question["cluster"]), intra_op=worker.settings["intra_op"]
  )
  devices = [x.name for x in tf.config.list_logical_devices()]
  return {"devices": devices, **usage(worker, {})}


@_answers
def load(worker: Worker, question: Mapping[str, Any]) -> dict[str, Any]:
  """Loads a SavedModel, runs its step once, and returns what that runs."""
  from baechi_tf.runner import step

  model = step.load_step(
    question["path"],
    question["signature"],
    question["tags"],
    question["inputs"],
    question["device"],
  )
  device_of, sends = step.executed_graph(model)
  worker.models[question["key"]] = model
  return {"device_of": device_of, "sends": sends}


@_answers
def unload(worker: Worker, question: Mapping[str, Any]) -> dict[str, Any]:
  """Frees a model."""
  del worker.models[question["key"]]
  return {}


@_answers
def run(worker: Worker, question: Mapping[str, Any]) -> dict[str, Any]:
  """Runs steps and returns how long each took."""
  model = worker.models[question["key"]]
  times_us, begin_us = [], []
  for _ in range(question["num_steps"]):
    begin_us.append(time.time() * 1e6)
    start = time.perf_counter()
    model()
    times_us.append((time.perf_counter() - start) * 1e6)
  return {"times_us": times_us, "begin_us": begin_us}


@_answers
def start_trace(worker: Worker, question: Mapping[str, Any]) -> dict[str, Any]:
  """Starts to record the ops that this process runs."""
  del worker
  from baechi_tf.runner import step_trace

  step_trace.start(question["directory"])
  return {}


@_answers
def stop_trace(worker: Worker, question: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the ops that ran since `start_trace`."""
  del worker
  from baechi_tf.runner import step_trace

  return {"events": step_trace.stop(question["directory"])}


@_answers
def usage(worker: Worker, question: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the processor time used, and the memory now and at its peak."""
  del worker, question
  with open("/proc/self/statm", encoding="ascii") as file:
    resident = int(file.read().split()[1]) * resource.getpagesize()
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
  return {
    "cpu_us": time.process_time() * 1e6,
    "resident_bytes": resident,
    "peak_bytes": max(peak, resident),
  }


def _spec(
  cluster: Mapping[str, Mapping[str, str]] | None,
) -> dict[str, dict[int, str]] | None:
  """Returns a cluster whose tasks are numbers again, as JSON's are not."""
  return cluster and {
    job: {int(index): address for index, address in tasks.items()}
    for job, tasks in cluster.items()
  }


def _read_questions(questions: queue.SimpleQueue, directory: str) -> None:
  """Passes questions on; ends this process when nobody can ask any more.

  Whoever asked was killed then, and left the run's directory behind.
  """
  for line in sys.stdin.buffer:
    questions.put(json.loads(line))
  shutil.rmtree(directory, ignore_errors=True)
  os._exit(1)


def main() -> None:
  """Answers until there are no more questions."""
  # What libraries print is no answer.
  output = os.fdopen(os.dup(1), "w", encoding="utf-8")
  os.dup2(2, 1)
  worker, questions = Worker(), queue.SimpleQueue()
  question = json.loads(sys.stdin.buffer.readline() or "null")
  is_first = True
  while question is not None:
    try:
      reply = _ANSWERS[question["ask"]](worker, question)
    except (OSError, ValueError, RuntimeError) as error:
      reply = {"error": str(error)}
    except Exception as error:
      # TensorFlow's own errors have no common base that is loaded yet.
      if type(error).__module__.partition(".")[0] != "tensorflow":
        raise
      reply = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(reply), file=output, flush=True)
    if is_first:  # threads only after `setup`
      threading.Thread(
        target=_read_questions,
        args=(questions, worker.settings["directory"]),
        daemon=True,
      ).start()
      is_first = False
    question = questions.get()


if __name__ == "__main__":
  main()
