"""Nobody but its own processes reaches a private network.

Skipped, with the system's reason, where networks cannot be made.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

from robust_tf.training import private_network
from robust_tf.training.private_network import NotAllowedError
from tools import network_namespaces

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

# Listens as TensorFlow's servers do, in a private network or not, and says
# where; then says whether a peer in the same network is answered.
LISTEN = """
import contextlib, subprocess, sys
from robust_tf.training import private_network

SERVER = '''
import socket, sys
with socket.create_server(("", 0)) as x:
  print(x.getsockname()[1], flush=True)
  sys.stdin.read()
'''
CLIENT = '''
import socket, sys
socket.create_connection(("localhost", int(sys.argv[1])), timeout=10).close()
'''
with contextlib.ExitStack() as stack:
  prefix = ()
  if sys.argv[1] == "private":
    prefix = stack.enter_context(private_network.private_network())
  python = [*prefix, sys.executable, "-c"]
  server = subprocess.Popen(
    [*python, SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
  )
  port = server.stdout.readline().strip()
  print(port, subprocess.run([*python, CLIENT, port]).returncode, flush=True)
  sys.stdin.read()
  server.communicate()
"""


@contextlib.contextmanager
def made(context):
  """Yields what a context does; skips the test if the system refuses."""
  with contextlib.ExitStack() as stack:
    try:
      network = stack.enter_context(context)
    except NotAllowedError as error:
      pytest.skip(f"networks cannot be made here: {error}")
    yield network


@pytest.mark.parametrize(("kind", "is_reached"), [("private", 0), ("open", 1)])
def test_other_hosts_reach_only_what_is_not_private(kind, is_reached):
  with made(network_namespaces.star(2)) as (here, there):
    with subprocess.Popen(
      [*here.host.prefix, sys.executable, "-c", LISTEN, kind],
      env=ENVIRONMENT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    ) as process:
      port, peer_failed = map(int, process.stdout.readline().split())
      # From another host, and from here, through this host's own address.
      reached = [
        reaches(link, address_of(here), port) for link in (there, here)
      ]
      process.communicate()
  assert peer_failed == 0
  assert reached == [is_reached] * 2


def address_of(link):
  return link.host.address.partition(":")[0]


def reaches(link, address, port):
  """Returns whether a connection from a host succeeds."""
  script = (
    "import socket, sys; socket.create_connection"
    "((sys.argv[1], int(sys.argv[2])), timeout=10)"
  )
  done = subprocess.run(
    [*link.host.prefix, sys.executable, "-c", script, address, str(port)],
    stderr=subprocess.PIPE,
    text=True,
    check=False,
  )
  assert not done.returncode or "ConnectionRefusedError" in done.stderr
  return done.returncode == 0


def test_network_is_gone_when_nobody_is_in_it():
  with made(private_network.private_network()) as prefix:
    if not prefix:
      pytest.skip("this process is in a private network itself")
    command = [*prefix, sys.executable, "-c", "print(1)"]
    assert subprocess.run(command, check=True, capture_output=True)
  assert subprocess.run(command, check=False, capture_output=True).returncode


def test_program_enters_and_stays():
  script = (
    "import os, sys; from robust_tf.training import private_network as p;"
    " p.enter(); print(os.getpid(), p.is_private(), sys.argv[1:])"
  )
  with made(private_network.private_network()):
    pass
  with subprocess.Popen(
    [sys.executable, "-c", script, "a", "b c"],
    env=ENVIRONMENT,
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    output, _ = process.communicate(timeout=60)
  assert output == f"{process.pid} True ['a', 'b c']\n"


@pytest.fixture
def no_networks(tmp_path, monkeypatch):
  """Has the system refuse networks, as a container does."""
  fake = tmp_path / "unshare"
  fake.write_text(
    '#!/bin/sh\necho "unshare failed: not permitted" >&2\nexit 1\n'
  )
  fake.chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
  if private_network.is_private():
    pytest.skip("this process is in a private network itself")


@pytest.mark.usefixtures("no_networks")
def test_refusal_says_what_and_why():
  with (
    pytest.raises(
      NotAllowedError, match="`unshare .*` fails: .* not permitted"
    ),
    private_network.private_network(),
  ):
    pass


@pytest.mark.usefixtures("no_networks")
def test_missing_program_is_a_refusal(tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", str(tmp_path / "empty"))
  with (
    pytest.raises(NotAllowedError, match="there is no program 'unshare'"),
    private_network.private_network(),
  ):
    pass


@pytest.mark.usefixtures("no_networks")
def test_local_cluster_is_refused_without_a_network_of_its_own(
  tmp_path, monkeypatch, capsys
):
  from robust_tf.training.main import main

  monkeypatch.delenv("TF_CONFIG", raising=False)
  cluster = ["--strategy=parameter_server", "--local_cluster=workers:1,ps:1"]
  output = tmp_path / "out"
  code = main(["--algorithm=fed_async", *cluster, f"--output={output}"])
  assert code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert "not permitted. Give --listen_on_network if you trust" in line
  assert not output.exists()


def test_processes_of_a_real_cluster_say_who_reaches_them(monkeypatch, capsys):
  from robust_tf.training.main import main

  config = {"cluster": {"worker": ["a:1", "b:1"]}}
  config["task"] = {"type": "worker", "index": 0}
  monkeypatch.setenv("TF_CONFIG", json.dumps(config))
  assert main(["--strategy=multi_worker", "--workers=3"]) == 2
  *warnings, _ = capsys.readouterr().err.splitlines()
  assert len(warnings) == (not private_network.is_private())
  for warning in warnings:
    assert "listen on every interface and ask for no password" in warning
