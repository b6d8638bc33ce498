"""Flags for few devices at a time, and TF_CONFIG of their clusters."""

import inspect
import json

import pytest

from robust_tf.federated import sampling
from robust_tf.federated import staleness
from robust_tf.federated.fed_async import FedAsync
from robust_tf.federated.slsgd import fed_avg
from robust_tf.federated.slsgd import SLSGD
from robust_tf.training import output
from robust_tf.training.algorithms import ALGORITHMS
from robust_tf.training.algorithms import REQUIRED
from robust_tf.training.cluster_task import ClusterTask
from robust_tf.training.cluster_task import this_task
from robust_tf.training.federated_flags import ClusterSize
from robust_tf.training.job_flags import parse_flags
from robust_tf.training.settings import parse_settings

FED_ASYNC = "--algorithm=fed_async"
SLSGD_5 = ("--algorithm=slsgd", "--devices_per_round=5")
CLUSTER = "--strategy=parameter_server"
LOCAL = "--local_cluster=workers:2,ps:1"

# Arguments that the job itself gives to the servers.
SUPPLIED = {
  "weights", "tasks", "aggregator", "aggregator_at", "attack",
  "validation_gradient", "learning_rate",
}  # fmt: skip
# Flags of an algorithm that are no arguments of its server.
BESIDE = {
  "local_steps", "proximal_weight", "deadline_s", "simulated_staleness",
  "mixing_decay_steps", "mixing_decay_factor",
}  # fmt: skip
RENAMED = {"sampling": "sample", "zeno_epsilon": "epsilon"}


def test_arguments_are_complete_with_their_defaults():
  settings = parse_settings([FED_ASYNC, "--local_steps=5-15"])
  arguments = settings.algorithm_arguments
  assert arguments["local_steps"] == (5, 15)
  assert arguments["mixing_weight"] == 0.6
  assert arguments["sampling"] == "permutation"
  assert arguments["staleness"](7) == 1
  assert parse_settings([]).algorithm_arguments == {}
  zeno = parse_settings(["--algorithm=zeno_plus_plus"])
  assert zeno.algorithm_arguments["local_steps"] == 1
  assert zeno.validation_batch_size == 100


def test_staleness_functions_get_their_flags():
  settings = parse_settings(
    [
      FED_ASYNC,
      "--staleness=hinge",
      "--staleness_decay=3",
      "--staleness_tolerated=2",
    ]
  )
  s = settings.algorithm_arguments["staleness"]
  expected = staleness.hinge(3, 2)
  assert [s(u) for u in range(6)] == [expected(u) for u in range(6)]


def test_choices_are_those_of_the_package():
  values = parse_flags([])
  for name, table in (
    ("staleness", staleness.STALENESS),
    ("sampling", sampling.SAMPLINGS),
  ):
    assert values[name].parser.enum_values == [*table]


def zeno_plus_plus():
  from robust_tf.federated.zeno_plus_plus import ZenoPlusPlus

  return ZenoPlusPlus


@pytest.mark.parametrize(
  ("name", "server"),
  [
    ("fed_async", lambda: FedAsync),
    ("slsgd", lambda: SLSGD),
    ("fed_avg", lambda: fed_avg),
    ("zeno_plus_plus", zeno_plus_plus),
  ],
)
def test_flags_of_an_algorithm_are_the_arguments_of_its_server(name, server):
  taken = inspect.signature(server()).parameters
  flags = ALGORITHMS[name]
  ours = {RENAMED.get(x, x) for x in flags.keys() - BESIDE}
  assert ours == taken.keys() - SUPPLIED
  for flag, default in flags.items():
    if flag in BESIDE | {"sampling", "staleness", "concurrency"}:
      continue  # by name, of the loop, or of the number of workers
    expected = taken[RENAMED.get(flag, flag)].default
    assert default == (REQUIRED if expected is inspect._empty else expected)


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["--algorithm=fedavg"], "--algorithm=fedavg: .*fed_avg"),
    (["--algorithm=slsgd"], "--algorithm=slsgd needs --devices_per_round"),
    (["--mixing_weight=0.5"], "=fed_async or slsgd, not of synchronous"),
    (["--local_steps=5"], "--local_steps is an argument of --algorithm="),
    ([FED_ASYNC, "--devices_per_round=5"], "slsgd or fed_avg, not of fed_as"),
    ([*SLSGD_5, "--concurrency=2"], "zeno_plus_plus, not of slsgd"),
    ([*SLSGD_5, "--max_staleness=2"], "zeno_plus_plus, not of slsgd"),
    ([*SLSGD_5, "--simulated_staleness=2"], "zeno_plus_plus, not of slsgd"),
    ([*SLSGD_5, "--staleness=hinge"], "--algorithm=fed_async, not of slsgd"),
    ([FED_ASYNC, "--rho=0.1"], "--aggregator=zeno, not of mean"),
    ([FED_ASYNC, "--local_steps=0"], "0 must be at least 1, and a range must"),
    ([FED_ASYNC, "--local_steps=7-5"], "7-5 must be at least 1, and a range"),
    ([FED_ASYNC, "--local_steps=some"], "'some' is not a number, such as 10"),
    ([FED_ASYNC, "--mixing_weight=0"], "=0.0 must be above 0 and at most 1"),
    ([FED_ASYNC, "--mixing_weight=1.1"], "=1.1 must be above 0 and at most 1"),
    (
      [FED_ASYNC, "--mixing_decay_steps=5", "--mixing_decay_factor=2"],
      "--mixing_decay_factor=2.0 must be above 0 and at most 1",
    ),
    ([FED_ASYNC, "--mixing_decay_factor=0.1"], "needs --mixing_decay_steps"),
    ([FED_ASYNC, "--mixing_decay_steps=5,3"], "=5,3 must ascend, from 1 on"),
    ([FED_ASYNC, "--proximal_weight=-1"], "--proximal_weight=-1"),
    ([FED_ASYNC, "--max_staleness=-1"], "--max_staleness=-1"),
    ([FED_ASYNC, "--staleness_decay=1"], "and there is no --staleness"),
    (
      [FED_ASYNC, "--staleness=polynomial", "--staleness_tolerated=1"],
      "is an argument of --staleness=hinge, not of polynomial",
    ),
    (
      [FED_ASYNC, "--staleness=polynomial", "--staleness_decay=-1"],
      "--staleness=polynomial: staleness_decay=-1.0 must be a finite number",
    ),
    (
      [FED_ASYNC, "--staleness=hinge", "--staleness_tolerated=-1"],
      "--staleness=hinge: staleness_tolerated=-1.0 must be",
    ),
    (
      [FED_ASYNC, "--staleness=sigmoid", "--staleness_floor=0.5"],
      "--staleness=sigmoid: staleness_floor=0.5 must be",
    ),
    (
      [
        *SLSGD_5,
        *("--workers=5", "--aggregator=trimmed_mean", "--trim=1"),
        *("--attack=sign_flip", "--byzantine=0,3"),
      ],
      "--byzantine names 2 devices, .* --trim=1 withstands 1 at most",
    ),
    ([*SLSGD_5, "--workers=4"], "round=5 is more than the --workers=4 devices"),
    (
      [*SLSGD_5, CLUSTER, "--arrivals_per_round=6"],
      "--arrivals_per_round=6 is more than --devices_per_round=5",
    ),
    ([*SLSGD_5, "--arrivals_per_round=4"], "it is taken by --strategy=param"),
    ([FED_ASYNC, "--concurrency=2"], "it is taken by --strategy=parameter_s"),
    ([FED_ASYNC, "--deadline_s=2"], "it is taken by --strategy=parameter_s"),
    ([FED_ASYNC, CLUSTER, "--deadline_s=0"], "--deadline_s=0.0 must be above"),
    (
      [FED_ASYNC, CLUSTER, "--concurrency=30"],
      "=30 is more than the --wor",
    ),
    (
      [FED_ASYNC, CLUSTER, "--simulated_staleness=3"],
      "--simulated_staleness is for --strategy=none",
    ),
    ([FED_ASYNC, "--aggregator=median"], "median makes one update of several"),
    (
      [FED_ASYNC, "--attack=sign_flip", "--byzantine=1"],
      "--attack=sign_flip replaces updates of a round.*label_flip",
    ),
    ([FED_ASYNC, "--optimizer=cser"], "=cser is for --algorithm=synchronous"),
    ([FED_ASYNC, "--decay_steps=9"], "anew with each task; take --mixing_de"),
    (
      ["--algorithm=zeno_plus_plus", "--decay_steps=9"],
      "begins anew with each task$",
    ),
    ([FED_ASYNC, "--strategy=mirrored"], "=mirrored is not for --algorithm=fe"),
    (["--local_cluster=workers:2,ps:1"], "is not for --strategy=none"),
    ([FED_ASYNC, CLUSTER, "--max_restarts=1"], "needs --local_cluster"),
    ([FED_ASYNC, "--local_cluster=workers:2"], "such as workers:4,ps:2"),
    ([FED_ASYNC, "--local_cluster=workers:0,ps:1"], "of at least 1, such as"),
  ],
)
def test_wrong_flags_are_named(argv, message):
  with pytest.raises(ValueError, match=message) as caught:
    parse_settings(argv)
  assert "\n" not in str(caught.value)


def test_texts_make_the_same_settings_again():
  argv = [
    *(FED_ASYNC, CLUSTER, LOCAL, "--local_steps=3-7", "--output=x"),
    *("--mixing_decay_steps=3,5", "--staleness=sigmoid"),
  ]
  settings = parse_settings(argv)
  assert settings.local_cluster == ClusterSize(workers=2, ps=1)
  assert settings.flags["local_cluster"] == "workers:2,ps:1"
  assert settings.flags["local_steps"] == "3-7"
  texts = [f"--{name}={text}" for name, text in settings.flags.items()]
  assert parse_settings([*texts, "--output=y"]).flags == settings.flags


def test_flagfile_of_a_cluster_runs_in_one_process():
  settings = parse_settings([FED_ASYNC, LOCAL, "--local_cluster=none"])
  assert settings.local_cluster is None
  assert "local_cluster" not in settings.flags


def test_run_goes_on_with_other_processes(tmp_path):
  before = {"steps": "5", "local_cluster": "workers:2,ps:1"}
  output.check_same(before, {"steps": "5", "max_restarts": "3"}, "here")
  with pytest.raises(ValueError, match="holds another run"):
    output.check_same(before, {"steps": "4"}, "here")


# TF_CONFIG.


def config(**changes):
  value = {
    "cluster": {
      "chief": ["a:1"],
      "ps": ["b:1", "b:2"],
      "worker": ["c:1", "c:2", "c:3"],
    },
    "task": {"type": "worker", "index": 2},
    **changes,
  }
  return {"TF_CONFIG": json.dumps(value)}


def cluster(**changes):
  value = json.loads(config()["TF_CONFIG"])["cluster"]
  return config(cluster={**value, **changes})


def test_task_is_read_and_written():
  task = this_task(config())
  assert (task.job, task.index) == ("worker", 2)
  assert task.cluster["ps"] == ("b:1", "b:2")
  assert this_task({"TF_CONFIG": task.to_json()}) == task
  assert isinstance(task, ClusterTask)


@pytest.mark.parametrize(
  ("environment", "message"),
  [
    ({}, "needs the variable TF_CONFIG in each process.*--local_cluster"),
    ({"TF_CONFIG": ""}, "needs the variable TF_CONFIG"),
    ({"TF_CONFIG": "{"}, "TF_CONFIG={ is not as it must be: Expecting"),
    ({"TF_CONFIG": "[]"}, "cluster is missing, or no dict"),
    (config(task=3), "task is missing, or no dict"),
    (config(task={"type": "worker"}), "index is missing, or no int"),
    (config(task={"type": "worker", "index": 3}), "no task worker 3"),
    (config(task={"type": "evaluator", "index": 0}), "no task evaluator 0"),
    (cluster(evaluator=["d:1"]), "has the job evaluator; there are chief, ps"),
    (cluster(chief=[]), "its cluster has no chief"),
    (cluster(ps=[]), "its cluster has no ps"),
    (cluster(worker=[]), "its cluster has no worker"),
    (config(cluster={"chief": ["a:1"], "ps": ["b:1"]}), "worker is missing"),
    (cluster(chief=["a:1", "a:2"]), "2 processes chief; it must have one"),
    (cluster(worker=["c:1", "b:2", "c:3"]), "has the address b:2 2 times"),
    (cluster(worker=["c:1", "c", "c:3"]), "the address 'c' is not host:port"),
    (cluster(ps=["b:0"]), "the address 'b:0' is not host:port"),
    (cluster(ps=["b:70000"]), "the address 'b:70000' is not host:port"),
    (cluster(ps=[7]), "the address 7 is not host:port"),
  ],
)
def test_unfit_tf_config_is_refused(environment, message):
  with pytest.raises(ValueError, match=message) as caught:
    this_task(environment)
  assert "\n" not in str(caught.value)
