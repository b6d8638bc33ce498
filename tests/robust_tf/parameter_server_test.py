"""Servers are found or named; a model is read whole, or not at all."""

import socket
import socketserver
import textwrap
import threading

import numpy as np
import pytest

from robust_tf.distribute import message
from robust_tf.distribute import parameter_server
from robust_tf.training import child_processes
from tests.robust_tf.server_network import server_network
from tests.tensorflow_setup import run_script
from tests.tensorflow_setup import tf

ARRAYS = [
  np.arange(6, dtype=np.float32).reshape(2, 3),
  np.array(0.5, np.float64),
  np.zeros((0, 4), np.float32),
  np.array([1, 2, 3], np.float16),
]
SPECS = [tf.TensorSpec(x.shape, x.dtype) for x in ARRAYS]


def test_bytes_of_tensors_are_those_of_arrays():
  sent = message.bytes_of_arrays(ARRAYS)
  assert sent.shape == (message.num_bytes(SPECS),) == (24 + 8 + 0 + 6,)
  tensors = [tf.constant(x) for x in ARRAYS]
  np.testing.assert_array_equal(message.bytes_of_tensors(tensors), sent)


def test_tensors_and_arrays_come_back_from_their_bytes():
  sent = message.bytes_of_arrays(ARRAYS)
  for back in (
    message.arrays_of_bytes(sent, SPECS),
    [x.numpy() for x in message.tensors_of_bytes(tf.constant(sent), SPECS)],
  ):
    for x, y in zip(ARRAYS, back, strict=True):
      assert (x.shape, x.dtype) == (y.shape, y.dtype)
      np.testing.assert_array_equal(x, y)


def test_addresses_that_do_not_answer_are_named():
  missing, other = child_processes.free_addresses(2)
  cluster = {"worker": [missing], "ps": [other, "nowhere"]}
  with pytest.raises(ConnectionError, match="within 0.5 s") as raised:
    parameter_server.wait_for_cluster(cluster, timeout_s=0.5)
  assert f"worker 0 at {missing}" in str(raised.value)
  assert f"ps 0 at {other}, ps 1 at nowhere" in str(raised.value)


def test_process_that_hangs_does_not_answer():
  # The system takes connections for it.
  with socket.create_server(("localhost", 0)) as listener:
    address = f"localhost:{listener.getsockname()[1]}"
    with pytest.raises(ConnectionError, match=f"worker 0 at {address}"):
      parameter_server.wait_for_cluster({"worker": [address]}, timeout_s=0.5)


def test_server_of_something_else_does_not_answer():
  class Handler(socketserver.BaseRequestHandler):
    def handle(self):
      self.request.recv(100)
      self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

  with socketserver.ThreadingTCPServer(("localhost", 0), Handler) as server:
    threading.Thread(target=server.serve_forever).start()
    address = f"localhost:{server.server_address[1]}"
    try:
      with pytest.raises(ConnectionError, match=f"worker 0 at {address}"):
        parameter_server.wait_for_cluster({"worker": [address]}, timeout_s=0.5)
    finally:
      server.shutdown()


def test_model_is_of_one_version_while_another_is_written():
  script = textwrap.dedent("""
    import os
    import threading

    import numpy as np

    from tests.robust_tf import federated_cluster
    from robust_tf.distribute import parameter_server
    from tests.tensorflow_setup import tf

    parameter_server.connect(federated_cluster.servers_here(), timeout_s=30)
    specs = [tf.TensorSpec([50, 7]), tf.TensorSpec([3], tf.float64)]
    model = parameter_server.PublishedModel(specs)

    def write(version):
      dtypes = [x.dtype.as_numpy_dtype for x in specs]
      arrays = [np.full(x.shape, version, t) for x, t in zip(specs, dtypes)]
      model.write(arrays, version)

    @tf.function(autograph=False)
    def read():
      values, version = model.read()
      return [tf.cast(tf.reshape(x, [-1]), tf.float64) for x in values], version

    read = read.get_concrete_function()
    write(0)
    model.check()
    versions = {0: [], 1: []}
    done = threading.Event()

    def reader(worker):
      while not done.is_set():
        with tf.device(f"/job:worker/replica:0/task:{worker}"):
          values, version = read()
          values, version = np.concatenate(values), int(version)
        if version != parameter_server.TORN:
          assert (values == version).all(), (version, values)
          versions[worker].append(version)

    threads = [threading.Thread(target=reader, args=(i,)) for i in versions]
    for thread in threads:
      thread.start()
    for version in range(1, 300):
      write(version)
    done.set()
    for thread in threads:
      thread.join()
    for seen in versions.values():
      assert seen == sorted(seen) and len(set(seen)) > 5, seen
    print("all whole", flush=True)
    os._exit(0)
  """)
  with server_network() as prefix:
    ended = run_script(script, prefix=prefix)
  assert "all whole" in ended.stdout, ended.stderr[-4000:]
  assert "AssertionError" not in ended.stderr


@pytest.mark.parametrize("job", ["worker", "ps"])
def test_cluster_without_a_job_is_an_error(job):
  cluster = {"worker": ["localhost:1"], "ps": ["localhost:2"]}
  with pytest.raises(ValueError, match=f"the cluster has no {job}"):
    parameter_server.connect({**cluster, job: []}, timeout_s=1)


@pytest.mark.parametrize(("job", "index"), [("ps", 1), ("ps", -1), ("x", 0)])
def test_process_that_the_cluster_does_not_have_is_an_error(job, index):
  with pytest.raises(ValueError, match=f"there is no {job} {index}"):
    parameter_server.serve({"ps": ["localhost:1"]}, job, index)
