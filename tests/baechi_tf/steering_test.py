"""Pins, choices of devices and given plans, by the command line and beneath."""

import dataclasses
import json
import os

import numpy as np
import pytest

from baechi_tf.cli import progress
from baechi_tf.cli.main import main
from baechi_tf.cluster import Link
from baechi_tf.cluster import read_cluster
from baechi_tf.device_choice import choose_devices
from baechi_tf.given_plan import read_plan
from baechi_tf.planner import plan
from baechi_tf.search.budget import Budget
from tests import contracts
from tests.contracts import make_cluster

CPUS = ("/device:CPU:0", "/device:CPU:1")
LONG = "layer/" + "n" * 294
CLUSTER = "".join(
  f'[[device]]\nname = "{name}"\nmemory = 1000\nprocessor = "{name}"\n'
  for name in CPUS
)
CLUSTER += "[link]\nlatency_us = 1\nbytes_per_us = 10\n"
NO_SEARCH = "--search-seconds=0"


def op(name: str, **fields) -> dict:
  return {"id": name, "compute_time_us": 10, "output_bytes": [20], **fields}


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
  """A directory with a cluster, and a cost graph: x -> a -> (b, c) -> d."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(progress, "INTERVAL_S", 1000.0)
  (tmp_path / "cluster.toml").write_text(CLUSTER)
  graph = {
    "directed": True,
    "nodes": [
      op("x", is_input=True), op("a"), op("b", colocation_group="g"),
      op("c", colocation_group="g"), op(LONG),
    ],
    "edges": [
      {"source": a, "target": b}
      for a, b in (("x", "a"), ("a", "b"), ("a", "c"), ("b", LONG))
    ],
  }  # fmt: skip
  (tmp_path / "graph.json").write_text(json.dumps(graph))
  return tmp_path


def complaint(capsys, *argv: str, code: int = 2) -> str:
  """Returns the one line of a command that fails and writes nothing."""
  before = sorted(os.listdir("."))
  assert main(["place", "graph.json", "out.json", *argv]) == code
  captured = capsys.readouterr()
  assert captured.out == ""
  assert captured.err.count("\n") == 1
  assert sorted(os.listdir(".")) == before
  return captured.err


def placed(capsys, *argv: str) -> tuple[dict, dict]:
  """Returns the written plan, and what is printed as JSON."""
  argv = ["graph.json", "out.json", "--cluster=cluster.toml", *argv]
  assert main(["place", *argv, "--overwrite", "--json"]) == 0
  with open("out.json") as file:
    return json.load(file), json.loads(capsys.readouterr().out)


def test_pins_are_kept_and_reported(scratch, capsys):
  written, printed = placed(
    capsys, f"--pin=^[bc]$={CPUS[1]}", f"--pin=n{{99}}={CPUS[0]}"
  )
  assert written["placement"]["b"] == written["placement"]["c"] == CPUS[1]
  assert written["placement"][LONG] == CPUS[0]
  assert printed["pins"] == [
    {"regex": "^[bc]$", "device": CPUS[1], "num_ops": 2, "num_sharing": 0},
    {"regex": "n{99}", "device": CPUS[0], "num_ops": 1, "num_sharing": 0},
  ]
  assert f"pin 'n{{99}}={CPUS[0]}' holds 1 op" in printed["notes"]
  (scratch / "cluster.toml").write_text(f'{CLUSTER}[pins]\nb = "{CPUS[1]}"\n')
  written, printed = placed(capsys)
  assert written["placement"]["c"] == CPUS[1]
  assert printed["pins"][0]["num_sharing"] == 1
  assert main(["compare", "graph.json", "--cluster=cluster.toml"]) == 0
  assert "note: pin 'b=/device:CPU:1' holds 1 op" in capsys.readouterr().out


@pytest.mark.parametrize(
  "argv, message",
  [
    (["--pin=a"], "argument --pin: 'a' is not REGEX=DEVICE"),
    (["--pin=a="], "argument --pin: 'a=' is not REGEX=DEVICE"),
    ([f"--pin=q={CPUS[0]}"], "matches none of the 5 ops"),
    (["--pin=a=GPU"], "no device 'GPU'; its devices are /device:CPU:0,"),
    ([f"--pin=(={CPUS[0]}"], "not a regular expression"),
    (
      [f"--pin=a={CPUS[0]}", f"--pin=a={CPUS[1]}"],
      "pins 'a=/device:CPU:0' and 'a=/device:CPU:1' contradict each other",
    ),
    ([f"--exclude={CPUS[0]},GPU"], "cluster.toml: --exclude: the cluster has"),
    (["--only-devices=,"], "argument --only-devices: ',' is not a list"),
    ([f"--exclude={','.join(CPUS)}"], "leaves no device to plan for"),
    (
      [f"--only-devices={CPUS[0]}", f"--pin=a={CPUS[1]}"],
      "/device:CPU:1 is left out by --only-devices or --exclude",
    ),
    (["--keep-devices"], "--keep-devices is for TensorFlow models"),
    (["--plan=none.json"], "none.json: No such file"),
    (["--plan=p", "--placer=m_etf"], "--placer is for planning: --plan gives"),
    (["--plan=p", NO_SEARCH], "--search-seconds is for planning"),
    (["--plan=p", "--no-fusion"], "--no-fusion is for planning"),
  ],
)  # fmt: skip
def test_wrong_steering_is_one_line(argv, message, capsys):
  assert message in complaint(capsys, "--cluster=cluster.toml", *argv)


def test_device_too_small_for_its_pins_ends_with_3(capsys):
  error = complaint(
    capsys, "--cluster=cluster.toml", f"--pin=b={CPUS[1]}",
    "--memory-fraction=0.03", code=3,
  )  # fmt: skip
  assert "/device:CPU:1 has 30 bytes, too few for the 2 ops" in error


def test_plan_uses_the_chosen_devices_only(capsys):
  for argv in (f"--exclude={CPUS[0]}", f"--only-devices={CPUS[1]}"):
    written, printed = placed(capsys, argv, NO_SEARCH)
    assert set(written["placement"].values()) == {CPUS[1]}
    assert [x["name"] for x in printed["devices"]] == [CPUS[1]]


def test_chosen_devices_keep_their_links():
  links = {(0, 1): Link(1, 1), (0, 2): Link(2, 2), (1, 2): Link(3, 3)}
  cluster = make_cluster(3, latency_us=9.0, links=links)
  assert choose_devices(cluster, ["d0", "d1", "d2"]) is cluster
  chosen = choose_devices(cluster, exclude=["d1"])
  assert chosen.device_names == ("d0", "d2")
  assert chosen.latency_us.tolist() == [[0, 2], [2, 0]]
  assert choose_devices(cluster, ["d2", "d1"], ["d0"]).latency_us[0, 1] == 3


def test_step_is_dispatched_as_before_without_the_first_device():
  client = "/job:w/task:0/device:CPU:0"
  names = (client, "/job:w/task:0/device:GPU:0", "/job:w/task:1/device:GPU:0")
  links = {(0, 2): Link(1, 1, dispatch_us=7)}
  cluster = make_cluster(3, links=links)
  devices = zip(cluster.devices, names, strict=True)
  cluster = dataclasses.replace(
    cluster, devices=tuple(dataclasses.replace(x, name=y) for x, y in devices)
  )
  chosen = choose_devices(cluster, exclude=[client])
  assert chosen.dispatch_us.tolist() == [0, 7]
  with pytest.raises(ValueError, match="no device in the process of /job:w"):
    choose_devices(cluster, only_devices=names[2:])


def edited(written: dict, **fields) -> None:
  with open("edited.json", "w") as file:
    json.dump({**written, **fields}, file)


def test_edited_plan_is_priced_and_written(capsys):
  written, printed = placed(capsys, f"--pin=b={CPUS[1]}", NO_SEARCH)
  edited(written)
  again, repriced = placed(capsys, "--plan=edited.json")
  assert again["placement"] == written["placement"]
  assert again["order"] == written["order"]
  assert repriced["makespan_us"] == printed["makespan_us"]
  placement = dict.fromkeys(written["placement"], CPUS[0])
  edited(written, placement=placement)
  again, repriced = placed(capsys, "--plan=edited.json", "--no-order")
  assert again["placement"] == placement
  assert "order" not in again
  assert repriced["makespan_us"] == 50.0
  assert repriced["lower_bound_us"] <= 50.0
  assert main(["simulate", "graph.json", "out.json",
               "--cluster=cluster.toml", "--json"]) == 0  # fmt: skip
  assert json.loads(capsys.readouterr().out)["makespan_us"] == 50.0


def test_wrongly_edited_plan_is_one_line(capsys):
  written, _ = placed(capsys, f"--pin=b={CPUS[1]}", NO_SEARCH)
  os.remove("out.json")
  devices, order = written["placement"], written["order"]
  less = {name: x for name, x in devices.items() if name != "a"}
  for fields, message in (
    ({"placement": devices | {"q": CPUS[0]}}, "unknown op 'q'"),
    ({"placement": less}, "1 of 5 ops have no device in the placement, first"),
    ({"placement": devices | {"a": "GPU"}}, "which is not in the cluster"),
    (
      {"placement": devices | {"b": CPUS[0]}},
      "'b' and 'c' must share a device",
    ),
    ({"order": order[::-1]}, "the order has a cycle"),
    ({"order": [*order, "q"]}, "the order has an unknown op 'q'"),
    ({"order": order[1:]}, "the order lacks 1 of 5 ops"),
    ({"order": [*order, "a"]}, "the order repeats 1 of 5 ops"),
  ):
    edited(written, **fields)
    error = complaint(capsys, "--cluster=cluster.toml", "--plan=edited.json")
    assert error.startswith("baechi: edited.json: ")
    assert message in error
  edited(written)
  argv = ["--cluster=cluster.toml", "--plan=edited.json"]
  error = complaint(capsys, *argv, f"--pin=a={CPUS[1]}", f"--pin=b={CPUS[0]}")
  assert "must be on" in error
  error = complaint(capsys, *argv, "--memory-fraction=0.05", code=3)
  assert error.startswith("baechi: edited.json: /device:CPU:0 would need")


def test_given_plan_has_the_figures_of_the_plan_it_comes_from(tmp_path):
  cluster = read_cluster("cluster.toml")
  graph = contracts.random_graph(np.random.default_rng(3), 12)
  planned = plan(graph, cluster, budget=Budget(evaluations=200))
  path = tmp_path / "plan.json"
  path.write_text(planned.placement.to_json())
  given = read_plan(path, graph, cluster)
  assert given.placement.to_json() == planned.placement.to_json()
  assert given.ordered_ops == planned.ordered_ops
