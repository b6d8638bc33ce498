"""The command line on cost graphs, and on what is wrong before TensorFlow."""

import importlib.metadata
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest

from baechi_tf.cli import place
from baechi_tf.cli import progress
from baechi_tf.cli.flag_names import with_flags
from baechi_tf.cli.main import main

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
CLUSTER = """\
[[device]]
name = "/device:CPU:0"
memory = 1000
[[device]]
name = "/device:CPU:1"
processor = "another"
memory = 1000
[link]
latency_us = 1
bytes_per_us = 10
"""
RUN = "from baechi_tf.cli.main import run; run()"
SUBCOMMANDS = (
  "place", "profile", "inspect", "compare", "simulate", "explain",
  "bench-links",
)  # fmt: skip


def op(name: str, **fields) -> dict:
  return {"id": name, "compute_time_us": 10, "output_bytes": [20], **fields}


def fork(**fields) -> dict:
  """a -> (b, c), with fields on b."""
  return {
    "directed": True,
    "nodes": [op("a"), op("b", **fields), op("c")],
    "edges": [{"source": "a", "target": x} for x in "bc"],
  }


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
  """A directory with a cluster, a cost graph, and no slow-machine chatter."""
  monkeypatch.chdir(tmp_path)
  # A first run compiles, which can take long enough to be reported on.
  monkeypatch.setattr(progress, "INTERVAL_S", 1000.0)
  (tmp_path / "cluster.toml").write_text(CLUSTER)
  (tmp_path / "graph.json").write_text(json.dumps(fork()))
  return tmp_path


def baechi(*argv: str) -> int:
  return main([str(x) for x in argv])


def process(script: str, *argv: str, **kwargs) -> subprocess.CompletedProcess:
  """Runs Python code in a process of its own, here."""
  return subprocess.run(
    [sys.executable, "-c", script, *argv],
    env={**os.environ, "PYTHONPATH": ROOT},
    text=True,
    check=False,
    **kwargs,
  )


def complaint(capsys, *argv: str, code: int = 2) -> str:
  """Runs a command that must fail, with one line and nothing written."""
  before = sorted(os.listdir("."))
  assert baechi(*argv) == code
  captured = capsys.readouterr()
  assert captured.out == ""
  assert captured.err.startswith("baechi: ")
  assert captured.err.count("\n") == 1
  assert sorted(os.listdir(".")) == before
  return captured.err


def test_place_writes_the_plan_of_a_cost_graph(capsys):
  assert (
    baechi("place", "graph.json", "plan.json", "--cluster=cluster.toml") == 0
  )
  with open("plan.json") as file:
    plan = json.load(file)
  assert plan["devices"] == ["/device:CPU:0", "/device:CPU:1"]
  assert sorted(plan["placement"]) == ["a", "b", "c"]
  # a, then b and c side by side: one of them waits 3 us for a's output.
  assert plan["makespan_us"] == 23
  captured = capsys.readouterr()
  assert "gap to lower bound" in captured.out
  assert "wrote plan.json" in captured.out
  assert captured.err == ""


def test_place_prints_json(capsys):
  assert (
    baechi("place", "graph.json", "p.json", "--cluster=cluster.toml", "--json")
    == 0
  )
  fields = json.loads(capsys.readouterr().out)
  assert fields["makespan_us"] == 23
  assert fields["one_device"]["makespan_us"] == 30
  assert fields["output"] == "p.json"
  assert fields["planning_seconds"] > 0
  assert len(fields["candidates"]) == 11  # five placers twice, the search


@pytest.fixture
def spread(scratch):
  """A plan of the graph: b is on the second device, as long as it is there."""
  plan = {"placement": {"a": "/device:CPU:0", "b": "/device:CPU:1",
                        "c": "/device:CPU:0"}}  # fmt: skip
  (scratch / "plan.json").write_text(json.dumps(plan))
  return ("graph.json", "plan.json", "--cluster=cluster.toml")


def test_compare_shows_every_placers_plan_on_one_page(capsys):
  arguments = ("graph.json", "--cluster=cluster.toml", "--report=shown")
  assert baechi("compare", *arguments) == 0
  with open("shown/report.html", encoding="utf-8") as file:
    text = file.read()
  (data,) = re.findall('id="data">(.*?)</script>', text)
  plans = json.loads(data)["plans"]
  titles = [x["title"] for x in plans]
  assert len(titles) == len(set(titles)) == 5
  steps = [x["makespan_us"] for x in plans]
  assert steps[0] == 23
  assert steps == sorted(steps)
  capsys.readouterr()
  error = complaint(capsys, "compare", *arguments)
  assert "--overwrite" in error
  assert baechi("compare", *arguments, "--overwrite") == 0


def test_explain_says_what_a_move_would_do(capsys, spread):
  """a 0-10, its 20 bytes there at 13, b until 23; all here it would be 30."""
  model, plan, cluster = spread
  assert baechi("explain", model, plan, "b", "a", cluster) == 0
  out = capsys.readouterr().out
  assert "b is on /device:CPU:1, from 13.00 us to 23.00 us" in out
  assert "/device:CPU:0  30.00 us  30.4 % longer" in out
  assert "a is on /device:CPU:0" in out
  assert baechi("explain", model, plan, "b", cluster, "--json") == 0
  (found,) = json.loads(capsys.readouterr().out)["ops"]
  assert found["moves"] == [
    {"device": "/device:CPU:0", "makespan_us": 30.0, "lacking_bytes": {}}
  ]


def test_explain_takes_the_end_of_a_name(capsys, scratch):
  nodes = [op("x/a"), op("x/b"), op("y/b")]
  costs = {"directed": True, "nodes": nodes, "edges": []}
  (scratch / "graph.json").write_text(json.dumps(costs))
  plan = {"placement": dict.fromkeys(("x/a", "x/b", "y/b"), "/device:CPU:0")}
  (scratch / "plan.json").write_text(json.dumps(plan))
  arguments = ("explain", "graph.json", "plan.json", "--cluster=cluster.toml")
  assert baechi(*arguments, "a") == 0
  assert capsys.readouterr().out.startswith("x/a is on /device:CPU:0")
  error = complaint(capsys, *arguments, "b")
  assert "did you mean 'x/b' or 'y/b'?" in error


def test_explain_of_an_unknown_op_names_near_ones(capsys, spread, scratch):
  model, plan, cluster = spread
  error = complaint(capsys, "explain", model, plan, "bb", cluster)
  assert error.endswith("no op 'bb'; did you mean 'b'?\n")
  error = complaint(capsys, "explain", model, plan, "", cluster)
  assert error.endswith("no op ''\n")
  (scratch / "plan.json").write_text('{"placement": {"other": "x"}}')
  error = complaint(capsys, "explain", model, plan, "b", cluster)
  assert "made for another model" in error


def test_two_runs_write_the_same_bytes(scratch):
  for name in "xy":
    assert (
      baechi(
        "place", "graph.json", f"{name}.json", "--cluster=cluster.toml",
        f"--report={name}", "--search-evaluations=500", "--search-seed=3",
      )
      == 0
    )  # fmt: skip
  assert (scratch / "x.json").read_bytes() == (scratch / "y.json").read_bytes()
  for file in ("report.html", "report.txt", "trace.json", "placement.json"):
    assert (scratch / "x" / file).read_bytes() == (
      scratch / "y" / file
    ).read_bytes()


def test_search_is_a_candidate_with_a_note_on_its_gain(scratch, capsys):
  nodes = [op(f"op{i}", compute_time_us=10 + i) for i in range(8)]
  (scratch / "graph.json").write_text(
    json.dumps({"directed": True, "nodes": nodes, "edges": []})
  )
  argv = ("place", "graph.json", "--cluster=cluster.toml", "--json")
  assert baechi(*argv, "none.json", "--search-seconds=0") == 0
  without = json.loads(capsys.readouterr().out)
  assert baechi(*argv, "some.json", "--search-evaluations=3000") == 0
  fields = json.loads(capsys.readouterr().out)
  assert "search" not in [x["placer"] for x in without["candidates"]]
  assert [x["placer"] for x in fields["candidates"]][-1] == "search"
  assert fields["makespan_us"] == 54  # of 108 in all: nothing is faster
  assert any("the search tried" in note for note in fields["notes"])


def test_placer_is_the_one_asked_for(capsys):
  assert (
    baechi(
      "place", "graph.json", "p.json", "--cluster=cluster.toml", "--json",
      "--placer=single_device", "--no-coplacement", "--no-fusion",
    )
    == 0
  )  # fmt: skip
  fields = json.loads(capsys.readouterr().out)
  assert fields["placer"] == "single_device"
  assert fields["makespan_us"] == 30
  assert [x["coplacement"] for x in fields["candidates"]] == ["no"]


def test_memory_fraction_limits_the_plan(capsys):
  argv = ("place", "graph.json", "p.json", "--cluster=cluster.toml", "--json")
  assert baechi(*argv, "--memory-fraction=0.1") == 0
  fields = json.loads(capsys.readouterr().out)
  assert [x["memory_bytes"] for x in fields["devices"]] == [100, 100]
  assert all(x["peak_memory_bytes"] <= 100 for x in fields["devices"])


def test_overwrite_replaces_plan_and_report(scratch):
  argv = (
    "place", "graph.json", "p.json", "--cluster=cluster.toml", "--report=r",
  )  # fmt: skip
  assert baechi(*argv) == 0
  (scratch / "p.json").write_text("old")
  (scratch / "r" / "report.txt").write_text("old")
  assert baechi(*argv, "--overwrite") == 0
  assert "old" not in (scratch / "p.json").read_text()
  assert "old" not in (scratch / "r" / "report.txt").read_text()
  assert sorted(os.listdir(scratch)) == [
    "cluster.toml", "graph.json", "p.json", "r",
  ]  # fmt: skip


def test_arguments_are_read_from_a_flagfile(scratch, capsys):
  (scratch / "flags").write_text("--cluster=cluster.toml\n--placer=m_topo\n")
  assert baechi("place", "graph.json", "p.json", "--flagfile=flags") == 0
  assert "placed by m_topo" in capsys.readouterr().out


def test_compare_shows_every_placer(capsys):
  assert baechi("compare", "graph.json", "--cluster=cluster.toml") == 0
  text = capsys.readouterr().out
  for placer in ("single_device", "contiguous", "m_topo", "m_etf", "m_sct"):
    assert text.count(placer) == 2  # with and without co-placement
  assert (
    baechi("compare", "graph.json", "--cluster=cluster.toml", "--json") == 0
  )
  fields = json.loads(capsys.readouterr().out)
  assert min(x["makespan_us"] for x in fields["candidates"]) == 23
  assert set(fields["placing_seconds"]) == {
    "single_device", "contiguous", "m_topo", "m_etf", "m_sct",
  }  # fmt: skip


def test_compare_says_why_a_placer_found_nothing(scratch, capsys):
  # Either op fits on a device, both do not.
  graph = {
    "nodes": [op("a", persistent_bytes=700), op("b", persistent_bytes=700)],
    "edges": [],
  }
  (scratch / "graph.json").write_text(json.dumps(graph))
  assert baechi("compare", "graph.json", "--cluster=cluster.toml") == 0
  text = capsys.readouterr().out
  assert "does not fit" in text
  assert "single_device: " in text


def test_simulate_predicts_what_place_predicted(capsys):
  argv = ("graph.json", "plan.json", "--cluster=cluster.toml")
  assert baechi("place", *argv) == 0
  capsys.readouterr()
  assert baechi("simulate", *argv, "--json", "--report=r") == 0
  assert json.loads(capsys.readouterr().out)["makespan_us"] == 23
  assert sorted(os.listdir("r")) == [
    "placement.json", "report.html", "report.txt", "trace.json",
  ]  # fmt: skip


def test_simulate_follows_the_order_of_a_plan(scratch, capsys):
  """The other device waits 3 us for b's input; what runs first decides."""
  graph = {"directed": True, "nodes": [op(x) for x in "abc"]}
  graph["edges"] = [{"source": "a", "target": "b"}]
  (scratch / "graph.json").write_text(json.dumps(graph))
  cluster = CLUSTER.replace("/device:CPU:", "/job:worker/task:")
  (scratch / "cluster.toml").write_text(cluster)
  device_of = {x: f"/job:worker/task:{int(x == 'b')}" for x in "abc"}
  spans = {}
  for order in ("acb", "cab"):
    plan = {"placement": device_of, "order": list(order)}
    (scratch / "plan.json").write_text(json.dumps(plan))
    argv = ("graph.json", "plan.json", "--cluster=cluster.toml", "--json")
    assert baechi("simulate", *argv) == 0
    spans[order] = json.loads(capsys.readouterr().out)["makespan_us"]
  # a and b take 10 us each, the transfer 1 + 20 / 10 us; c goes first or not.
  assert spans == {"acb": 23.0, "cab": 33.0}


def test_simulate_ends_with_3_where_memory_does_not_suffice(scratch, capsys):
  (scratch / "graph.json").write_text(json.dumps(fork(persistent_bytes=990)))
  plan = {"placement": dict.fromkeys("abc", "/device:CPU:0")}
  (scratch / "plan.json").write_text(json.dumps(plan))
  argv = ("graph.json", "plan.json", "--cluster=cluster.toml")
  assert baechi("simulate", *argv, "--report=r") == 3
  assert "over" in (scratch / "r" / "report.txt").read_text()
  captured = capsys.readouterr()
  assert "predicted step" in captured.out
  assert captured.err.startswith("baechi: /device:CPU:0 would need 1,0")


def test_inspect_describes_a_cost_graph(scratch, capsys):
  graph = fork(persistent_bytes=7, colocation_group=1)
  graph["nodes"][0]["colocation_group"] = 1
  (scratch / "graph.json").write_text(json.dumps(graph))
  assert baechi("inspect", "graph.json", "--json") == 0
  fields = json.loads(capsys.readouterr().out)
  assert fields["num_ops"] == 3
  assert fields["num_data_edges"] == 2
  assert (fields["num_groups"], fields["num_grouped_ops"]) == (1, 2)
  assert fields["persistent_bytes"] == 7
  assert fields["compute_time_us"] == {"*": 30}
  assert baechi("inspect", "graph.json") == 0
  assert "2 ops must share devices in 1 groups" in capsys.readouterr().out


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_help_has_an_example(subcommand, capsys):
  with pytest.raises(SystemExit) as exit_with:
    baechi(subcommand, "--help")
  assert exit_with.value.code == 0
  text = capsys.readouterr().out
  assert f"\n  baechi {subcommand}" in text
  assert max(map(len, text.splitlines())) <= 80


def test_help_lists_every_subcommand(capsys):
  with pytest.raises(SystemExit):
    baechi("--help")
  text = capsys.readouterr().out
  for subcommand in SUBCOMMANDS:
    assert f"    {subcommand} " in text


@pytest.mark.parametrize(
  "argv, message",
  [
    ([], "COMMAND"),
    (["fly"], "invalid choice: 'fly'"),
    (["place", "graph.json"], "OUT, --cluster"),
    (["place", "graph.json", "p", "--cluster=cluster.toml", "--x"], "--x"),
    (["place", "graph.json", "p", "--flagfile=none"], "none"),
    (["place", "graph.json", "", "--cluster=cluster.toml"], "OUT: the path is"),
    (["place", "", "p.json", "--cluster=cluster.toml"], "IN: the path is emp"),
    (["compare", "graph.json", "--cluster="], "--cluster: the path is empty"),
    (["simulate", "graph.json", ""], "PLACEMENT: the path is empty"),
    (["inspect", ""], "MODEL: the path is empty"),
    (["profile", "model", "p", "--inputs="], "--inputs: the path is empty"),
  ],
)
def test_wrong_usage_is_one_line(argv, message, capsys):
  assert message in complaint(capsys, *argv)


@pytest.mark.parametrize(
  "argv, message",
  [
    (["--placer=m_best"], "invalid choice: 'm_best'.*m_sct"),
    (["--cluster=none.toml"], "none.toml: No such file or directory"),
    (["--cluster=."], r"\.: Is a directory"),
    (["--cluster=graph.json"], "graph.json: not TOML"),
    (["--memory-fraction=1.5"], r"memory fraction 1.5 is not in \(0, 1\]"),
    (["--memory-fraction=lots"], "--memory-fraction: invalid float value"),
    (["--emit=model"], "graph.json is a cost graph.*--emit plan"),
    (["--signature=train"], "--signature is for TensorFlow models"),
    (["--estimate"], "--estimate is for TensorFlow models"),
    (["--batch-size=3"], "--batch-size is for TensorFlow models"),
    (["--input-shape=x=2,a"], "'x=2,a' is not NAME=D,D"),
    (["--input-shape=2,3"], "'2,3' is not NAME=D,D"),
    (["--profile=p", "--estimate"], "not allowed with argument"),
    (["--report=graph.json"], "graph.json and graph.json are the same"),
    (["--report=p.json"], "p.json and p.json are the same"),
    (["--report=none/r"], "there is no directory"),
    (["--search-seconds=-1"], "--search-seconds must be from 0 to .*, got -1"),
    (["--search-seconds=nan"], "--search-seconds must be from 0 to .*nan"),
    (["--search-seconds=long"], "--search-seconds: invalid float value"),
    (["--search-evaluations=-1"], "--search-evaluations must be from 0 to"),
    (["--search-evaluations=1.5"], "--search-evaluations: invalid int value"),
    (["--search-seed=-1"], "--search-seed must be from 0 to"),
  ],
)
def test_place_refuses_wrong_arguments(argv, message, capsys):
  line = complaint(
    capsys, "place", "graph.json", "p.json", "--cluster=cluster.toml", *argv
  )
  assert re.search(message, line)


@pytest.mark.parametrize(
  "argv, message",
  [
    (["place", "graph.json", "p", "--no-rewrite"], "--no-rewrite is for Tens"),
    (["inspect", "graph.json", "--batch-size=0"], "--batch-size is for Tensor"),
    (["compare", "graph.json", "--tags=serve"], "--tags is for TensorFlow"),
    (
      ["place", "graph.json", "p", "--placer=m_etf", "--search-seconds=2"],
      "--search-seconds is of no use with --placer m_etf: only best searches",
    ),
    (
      ["place", "graph.json", "p", "--placer=m_etf", "--search-seed=0"],
      "--search-seed is of no use with --placer m_etf",
    ),
    (
      "place graph.json p --search-seconds=2 --search-evaluations=9".split(),
      "--search-seconds is of no use with --search-evaluations",
    ),
    (
      "place graph.json p --search-seconds=0 --search-seed=3".split(),
      "--search-seed is of no use without a search",
    ),
    (["place", "graph.json", "p", "--verify"], "--verify runs a placed Saved"),
    (["place", "model", "p", "--verify", "--fetch=y"], "no use with --fetch"),
    (
      ["place", "model", "p", "--listen-on-network"],
      "--listen-on-network is for the processes that --verify starts",
    ),
    (["place", "graph.json", "p", "--follow-links"], "--follow-links is for"),
    (["place", "graph.pb", "p.pb", "--follow-links"], "--follow-links is for"),
    (
      ["simulate", "graph.json", "p", "--overwrite"],
      "--overwrite is of no use",
    ),
    (["run", "model", "--overwrite"], "--overwrite is of no use"),
    (["run", "model", "--fetch=y"], "--fetch is of no use here"),
    (["run", "model", "--serve"], "--serve needs the hosts"),
    (["run", "model", "--host=a:1", "--task=0"], "--task 0 is for --serve"),
    (["run", "model", "--host=a:1", "--limit-memory"], "of this machine"),
    (
      ["run", "model", "--host=a:1", "--host=b:1", "--serve", "--estimate"],
      "--estimate is of no use with --serve",
    ),
  ],
)
def test_flag_without_effect_is_refused(argv, message, scratch, capsys):
  (scratch / "model").mkdir()
  (scratch / "graph.pb").touch()
  cluster = [] if argv[0] == "inspect" else ["--cluster=cluster.toml"]
  assert message in complaint(capsys, *argv, *cluster)


def test_place_refuses_names_of_devices_that_tensorflow_lacks(scratch, capsys):
  (scratch / "model").mkdir()
  (scratch / "cluster.toml").write_text(CLUSTER.replace("/device:CPU:0", "a"))
  argv = ("place", "model", "p", "--cluster=cluster.toml")
  assert "device 'a' is no TensorFlow device" in complaint(capsys, *argv)


@pytest.mark.parametrize(
  "message, expected",
  [
    ("pass batch_size= for a", "pass --batch-size for a"),
    ("give overwrite=True to", "give --overwrite to"),
    ("use estimate=True", "use --estimate"),
    ("name them with fetches=; no", "name them with --fetch; no"),
    (
      "inputs= is no use with profile=: it",
      "--inputs is no use with --profile: it",
    ),
    ("input_shapes={'x': (32, 784)}", "--input-shape x=32,784"),
    ("""input_shapes={"it's": (5,)} does""", "--input-shape it's=5 does"),
    ("seed= must be", "--search-seed must be"),
    # TensorFlow's own words stay.
    ("Op[seed=0, seed2=0]", "Op[seed=0, seed2=0]"),
    ("call(inputs=tf.Tensor)", "call(inputs=tf.Tensor)"),
  ],
)
def test_messages_name_flags_for_arguments(message, expected):
  assert with_flags(message) == expected


@pytest.mark.parametrize(
  "old, new, message",
  [
    ("memory = 1000", "memory = -5", "memory: -5 is not a positive size"),
    ("memory = 1000", "", "'memory' is missing"),
    ("memory = 1000", 'memory = "many"', "'many' is not a size"),
    ("memory = 1000", "memory = 1\ncolour = 1", "unknown key 'colour'"),
    ("CPU:1", "CPU:0", "'/device:CPU:0' is listed twice"),
    ("latency_us = 1", "latency_us = -1", "latency_us must be from 0"),
    ("[link]", "[link", "not TOML"),
    (
      "bytes_per_us = 10",
      'bytes_per_us = 10\n[[link.between]]\ndevices = ["/device:CPU:0", "x"]\n'
      "latency_us = 1\nbytes_per_us = 1",
      "unknown device 'x'",
    ),
  ],
)
def test_bad_cluster_file_is_refused(old, new, message, scratch, capsys):
  (scratch / "cluster.toml").write_text(CLUSTER.replace(old, new))
  argv = ("place", "graph.json", "p.json", "--cluster=cluster.toml")
  line = complaint(capsys, *argv)
  assert line.startswith("baechi: cluster.toml: ")
  assert message in line


@pytest.mark.parametrize(
  "text, message",
  [
    ("{", "graph.json: not JSON"),
    (json.dumps(fork(temporary_bytes=-1)), "graph.json: op 'b': temporary_byt"),
    (
      json.dumps(
        fork()
        | {"edges": [{"source": x, "target": y} for x, y in ("ab", "ba")]}
      ),
      "graph.json: the graph has a cycle: ",
    ),
    (
      json.dumps(fork(compute_time_us={"V100": 1})),
      "no compute times for device type 'CPU'",
    ),
  ],
)
@pytest.mark.parametrize("command", ["place", "compare"])
def test_bad_cost_graph_is_refused(command, text, message, scratch, capsys):
  (scratch / "graph.json").write_text(text)
  output = ["p.json"] if command == "place" else []
  argv = [command, "graph.json", *output, "--cluster=cluster.toml"]
  assert message in complaint(capsys, *argv)


def test_missing_model_is_refused(capsys):
  for model in ("none", "none.json", "none.pb"):
    argv = ("place", model, "p", "--cluster=cluster.toml")
    assert f"{model}: No such file" in complaint(capsys, *argv)


def test_missing_profile_is_refused(scratch, capsys):
  (scratch / "model").mkdir()
  line = complaint(
    capsys, "place", "model", "p", "--cluster=cluster.toml", "--profile=none"
  )
  assert "none: No such file" in line


def test_device_type_without_properties_is_refused(scratch, capsys):
  (scratch / "model").mkdir()
  argv = ("place", "model", "p", "--cluster=cluster.toml")
  assert "no [device_type.CPU] table" in complaint(capsys, *argv, "--estimate")
  text = CLUSTER.replace("memory", 'type = "V100"\nmemory')
  (scratch / "cluster.toml").write_text(text)
  line = complaint(capsys, *argv)
  assert line.startswith("baechi: cluster.toml: there is no [device_type.V100]")
  assert "--profile" in line


def test_existing_output_is_refused(scratch, capsys):
  (scratch / "p.json").write_text("precious")
  argv = ("place", "graph.json", "p.json", "--cluster=cluster.toml")
  assert "p.json exists; give --overwrite" in complaint(capsys, *argv)
  assert (scratch / "p.json").read_text() == "precious"


def test_overwrite_does_not_destroy_what_is_not_ours(scratch, capsys):
  (scratch / "home").mkdir()
  (scratch / "home" / "thesis").touch()
  argv = ("place", "graph.json", "p.json", "--cluster=cluster.toml")
  line = complaint(capsys, *argv, "--overwrite", "--report=home")
  assert "home is not a report" in line
  argv = ("place", "graph.json", "home", "--cluster=cluster.toml")
  assert "home is not a file" in complaint(capsys, *argv, "--overwrite")
  argv = ("place", "model", "home", "--cluster=cluster.toml", "--overwrite")
  (scratch / "model").mkdir()
  assert "home is not a SavedModel" in complaint(capsys, *argv)


def test_output_that_would_destroy_input_is_refused(scratch, capsys):
  (scratch / "model").mkdir()
  for model, output, message in (
    ("model", "model/placed", "is inside model"),
    ("model", "model", "are the same"),
    ("model", ".", "is inside the output"),
    ("graph.json", "graph.json", "are the same"),
    ("graph.json", "cluster.toml", "are the same"),
  ):
    argv = ("place", model, output, "--cluster=cluster.toml", "--overwrite")
    assert message in complaint(capsys, *argv)


def test_graph_file_needs_an_output_of_its_kind(scratch, capsys):
  (scratch / "graph.pb").touch()
  argv = ("place", "graph.pb", "placed", "--cluster=cluster.toml")
  assert "a name that ends in .pb or .pbtxt" in complaint(capsys, *argv)


@pytest.mark.parametrize("command", ["place", "compare"])
def test_op_too_large_for_any_device_ends_with_3(command, scratch, capsys):
  (scratch / "graph.json").write_text(json.dumps(fork(temporary_bytes=5000)))
  output = ["p.json", "--report=r"] if command == "place" else []
  argv = [command, "graph.json", *output, "--cluster=cluster.toml"]
  line = complaint(capsys, *argv, code=3)
  assert "op 'b'" in line
  assert "5,040 bytes" in line
  assert "would help" in line


@pytest.mark.parametrize(
  "plan, message",
  [
    ({"a": "/device:CPU:0"}, "2 of 3 ops have no device in the placement"),
    (dict.fromkeys("abcd", "/device:CPU:0"), "unknown op 'd'"),
    (dict.fromkeys("abc", "/device:CPU:7"), "not in the cluster"),
    ([], "not a placement file"),
  ],
)
def test_placement_of_another_model_is_refused(plan, message, scratch, capsys):
  (scratch / "plan.json").write_text(json.dumps({"placement": plan}))
  argv = ("simulate", "graph.json", "plan.json", "--cluster=cluster.toml")
  line = complaint(capsys, *argv, "--report=r")
  assert line.startswith("baechi: plan.json: ")
  assert message in line


def test_version_is_that_of_the_distribution(capsys):
  with pytest.raises(SystemExit) as ended:
    main(["--version"])
  assert not ended.value.code
  version = importlib.metadata.version("baechi-tf")
  assert capsys.readouterr().out == f"baechi {version}\n"


def test_missing_placement_is_refused(capsys):
  argv = ("simulate", "graph.json", "none", "--cluster=cluster.toml")
  assert "none: No such file" in complaint(capsys, *argv)


@pytest.mark.parametrize(
  "argv, message",
  [
    (["--serve"], "--serve needs the hosts"),
    (["--task=2", "--host=a:1", "--host=b:1"], "--task 2 is none of the 2"),
    (["--device=/device:CPU:0"], "two different devices"),
    (["--largest=big"], "'big' is not a size"),
    (["--host=a:1", "--host=a:1"], "names one host twice"),
  ],
)
def test_bench_links_refuses_wrong_arguments(argv, message, capsys):
  assert message in complaint(capsys, "bench-links", *argv)


def test_cost_graph_cannot_be_profiled(capsys):
  assert "cannot run" in complaint(capsys, "profile", "graph.json", "p")


def test_failed_write_leaves_nothing(scratch, capsys, monkeypatch):
  def full_disk(descriptor):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full_disk)
  argv = ("place", "graph.json", "p.json", "--cluster=cluster.toml")
  assert "p.json: No space left" in complaint(capsys, *argv)
  complaint(capsys, *argv, "--report=r")


@pytest.mark.parametrize("appears", ["p.json", "r"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_output_that_appears_while_planning_stays(
  appears, overwrite, scratch, capsys, monkeypatch
):
  plan = place.plan

  def plan_while_another_writes(*args, **kwargs):
    (scratch / appears).mkdir()
    (scratch / appears / "thesis").write_text("precious")
    return plan(*args, **kwargs)

  monkeypatch.setattr(place, "plan", plan_while_another_writes)
  argv = ["place", "graph.json", "p.json", "--cluster=cluster.toml"]
  argv += ["--report=r", *(["--overwrite"] if overwrite else [])]
  assert baechi(*argv) == 2
  line = capsys.readouterr().err
  kind = {"p.json": "file", "r": "report"}[appears]
  reason = f"is not a {kind}" if overwrite else "exists; give --overwrite"
  assert line.startswith(f"baechi: {appears} {reason}")
  assert (scratch / appears / "thesis").read_text() == "precious"
  assert sorted(os.listdir(scratch)) == sorted(
    ["cluster.toml", "graph.json", appears]
  )


@pytest.mark.parametrize("overwrite", [True, False])
def test_report_that_cannot_be_written_leaves_the_plan_as_it_was(
  overwrite, scratch, capsys
):
  if overwrite:
    (scratch / "p.json").write_text("old")
  argv = ["place", "graph.json", "p.json", "--cluster=cluster.toml"]
  argv += ["--report=r", *(["--overwrite"] if overwrite else [])]
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  # The plan has fewer bytes, the report more.
  resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
  try:
    assert "r: File too large" in complaint(capsys, *argv)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  if overwrite:
    assert (scratch / "p.json").read_text() == "old"


def test_output_that_is_a_link_replaces_what_it_leads_to(scratch, capsys):
  (scratch / "kept").mkdir()
  argv = ["place", "graph.json", "p.json", "--cluster=cluster.toml"]
  argv += ["--report=r", "--overwrite"]
  assert baechi(*argv) == 0
  for name in ("p.json", "r"):
    (scratch / name).rename(scratch / "kept" / name)
    (scratch / name).symlink_to(scratch / "kept" / name)
  for _ in range(2):
    assert baechi(*argv) == 0
  assert (scratch / "p.json").is_symlink() and (scratch / "r").is_symlink()
  assert len(os.listdir(scratch)) == 5
  assert sorted(os.listdir("kept")) == ["p.json", "r"]


# Clears the screen, starts a new line, turns the writing direction.
CONTROLS = "\x1b[2J\n\u202e\x9b"


def test_control_characters_are_escaped_in_text_and_exact_in_json(
  scratch, capsys
):
  name = f"op {CONTROLS}"
  graph = {"nodes": [op(name, persistent_bytes=700), op("b")], "edges": []}
  (scratch / f"graph{CONTROLS}.json").write_text(json.dumps(graph))
  argv = [f"graph{CONTROLS}.json", "--cluster=cluster.toml"]
  output, report = f"plan{CONTROLS}.json", f"report{CONTROLS}"
  assert baechi("inspect", argv[0]) == 0
  assert baechi("compare", *argv) == 0
  assert baechi("place", argv[0], output, argv[1], f"--report={report}") == 0
  assert baechi("simulate", argv[0], output, argv[1]) == 0
  assert baechi("inspect", f"none{CONTROLS}.json") == 2
  captured = capsys.readouterr()
  with open(f"{report}/report.txt", encoding="utf-8") as file:
    text = captured.out + captured.err + file.read()
  assert all(line.isprintable() for line in text.split("\n"))
  assert r"op \x1b[2J\n\u202e\x9b" in text
  assert baechi("inspect", argv[0], "--json") == 0
  fields = json.loads(capsys.readouterr().out)
  assert sorted(fields["slowest_ops"]) == ["b", name]
  with open(output) as file:
    assert name in json.load(file)["placement"]


def test_characters_that_a_terminal_lacks_do_not_fail_the_run(scratch):
  graph = {"nodes": [op("\N{GREEK SMALL LETTER ALPHA}")], "edges": []}
  (scratch / "graph.json").write_text(json.dumps(graph))
  script = f"import sys; sys.stdout.reconfigure(encoding='ascii')\n{RUN}"
  result = process(script, "inspect", "graph.json", capture_output=True)
  assert (result.returncode, result.stderr) == (0, "")
  assert r"\u03b1" in result.stdout


def test_name_of_any_legal_length_is_written(scratch):
  name = "x" * 255
  assert baechi("place", "graph.json", name, "--cluster=cluster.toml") == 0
  assert os.path.isfile(name)


def test_bug_is_not_taken_for_bad_input(monkeypatch):
  def bug(path):
    raise RuntimeError("bug")

  monkeypatch.setattr("baechi_tf.cli.model_input.read_cost_graph", bug)
  with pytest.raises(RuntimeError, match="bug"):
    baechi("compare", "graph.json", "--cluster=cluster.toml")


def test_nothing_but_a_model_loads_tensorflow():
  script = """
import sys
from baechi_tf.cli.flag_names import with_flags
from baechi_tf.cli.main import main
argv = sys.argv[1:]
cluster = "--cluster=cluster.toml"
assert main(["place", "graph.json", "plan.json", cluster, "--report=r"]) == 0
assert main(["compare", "graph.json", cluster]) == 0
assert main(["simulate", "graph.json", "plan.json", cluster]) == 0
assert main(["inspect", "graph.json"]) == 0
assert main(["place", "none", "out", cluster]) == 2
assert main(["place", ".", "out/x", cluster]) == 2
try:
  main(["place", "--help"])
except SystemExit as error:
  assert error.code == 0
assert "tensorflow" not in sys.modules
"""
  result = process(script, capture_output=True)
  assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
  "argv, code",
  [
    (["place", "graph.json", "p.json", "--cluster=cluster.toml"], 0),
    (["place", "graph.json", "p.json", "--cluster=none"], 2),
    (["place", "large.json", "p.json", "--cluster=cluster.toml"], 3),
  ],
)
def test_process_ends_with_the_exit_code(argv, code, scratch):
  (scratch / "large.json").write_text(json.dumps(fork(temporary_bytes=5000)))
  result = process(RUN, *argv, capture_output=True)
  assert result.returncode == code
  assert "Traceback" not in result.stderr
  assert os.path.exists("p.json") == (code == 0)


def test_closed_output_is_no_error(scratch):
  read_end, write_end = os.pipe()
  os.close(read_end)
  argv = ("inspect", "graph.json")
  result = process(RUN, *argv, stdout=write_end, stderr=subprocess.PIPE)
  os.close(write_end)
  assert (result.returncode, result.stderr) == (0, "")


def test_progress_writes_lines_only_after_a_while(monkeypatch, capsys):
  with progress.Progress() as say:
    say("quick work")
  assert capsys.readouterr().err == ""
  monkeypatch.setattr(progress, "INTERVAL_S", 0.01)
  text = ""
  with progress.Progress() as say:
    say.count("slow work")(3, 7)
    for _ in range(1000):
      text += capsys.readouterr().err
      if text:
        break
      time.sleep(0.01)
  assert text == "slow work, 3 of 7 ...\n"


def test_interrupted_command_ends_in_one_line(tmp_path, capsys):
  path = tmp_path / "never.json"
  os.mkfifo(path)  # to read it is to wait for a writer

  def interrupt():
    # A writer finds a reader once the command waits.
    writer = os.open(path, os.O_WRONLY)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    time.sleep(0.1)
    os.close(writer)

  threading.Thread(target=interrupt).start()
  assert main(["inspect", str(path)]) == 128 + signal.SIGINT
  assert capsys.readouterr().err == "baechi: interrupted\n"


def test_command_begins_without_the_subcommands():
  # Ctrl-C traces while Python imports the command itself: that must be short.
  script = "import sys, baechi_tf.cli.main; print(*sys.modules)"
  modules = process(script, stdout=subprocess.PIPE).stdout.split()
  assert "baechi_tf.cli.main" in modules
  assert "baechi_tf.planner" not in modules
