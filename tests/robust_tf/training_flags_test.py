"""The flags of robust-train: what they mean, and what is wrong with them."""

import importlib.metadata
import inspect
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from robust_tf.federated.partition import PARTITIONS
from robust_tf.training import choices
from robust_tf.training import job_flags
from robust_tf.training import output
from robust_tf.training.choices import LABEL_FLIP
from robust_tf.training.choices import parameters
from robust_tf.training.choices import signatures
from robust_tf.training.choices import SUPPLIED
from robust_tf.training.help import help_text
from robust_tf.training.job_flags import COMPRESSORS
from robust_tf.training.job_flags import flag_texts
from robust_tf.training.job_flags import parse_flags
from robust_tf.training.main import main
from robust_tf.training.process import this_process
from robust_tf.training.settings import parse_settings

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs/train").glob("*.flags"))
MUST_HAVE = {
  "digits_krum_ipm",
  "digits_phocas_gaussian",
  "digits_zeno_majority",
  "mnist_cnn_trimmed_mean",
}
# TensorFlow's own import is many times that on any machine.
RUN = """\
import sys
from robust_tf.training.main import main
code = main(sys.argv[1:])
sys.exit(9 if "tensorflow" in sys.modules or "keras" in sys.modules else code)
"""


def run(*argv, **environment):
  """Runs the command in a process of its own; 9 if TensorFlow was loaded."""
  return subprocess.run(
    [sys.executable, "-c", RUN, *argv],
    cwd=ROOT,
    env={**os.environ, **environment},
    capture_output=True,
    text=True,
    check=False,
  )


def test_defaults_are_complete():
  settings = parse_settings([])
  assert settings.aggregator == "mean"
  assert settings.attack is None
  assert settings.byzantine == ()
  assert settings.checkpoint_every == settings.evaluate_every


def test_arguments_go_to_the_functions_that_take_them():
  settings = parse_settings(
    [
      "--partition=by_label",
      "--shards_per_worker=3",
      "--nobalanced",
      "--aggregator=trimmed_mean",
      "--trim=4",
      "--attack=bit_flip",
      "--bits=30,31",
      "--byzantine=1,5-7",
    ]
  )
  assert settings.partition_arguments == {
    "shards_per_worker": 3,
    "balanced": False,
  }
  assert settings.aggregator_arguments == {"trim": 4}
  assert settings.attack_arguments == {"bits": [30, 31]}
  assert settings.byzantine == (1, 5, 6, 7)


def test_a_rule_that_scores_by_a_loss_is_known_as_such():
  settings = parse_settings(["--aggregator=zeno", "--num_suspected=3"])
  assert settings.takes_loss
  assert settings.validation_batch_size == 4
  assert not parse_settings([]).takes_loss


def test_a_later_flag_wins_over_the_file(tmp_path):
  path = tmp_path / "a.flags"
  path.write_text("# why\n--steps=7\n\n--seed=3\n")
  settings = parse_settings([f"--flagfile={path}", "--steps=8"])
  assert (settings.steps, settings.seed) == (8, 3)


def test_texts_make_the_same_settings_again(tmp_path):
  argv = [
    "--attack=non_finite",
    "--value=nan",
    "--byzantine=0-2",
    "--decay_steps=3,5",
    "--learning_rate=0.30000000000000004",
    "--aggregator=mean",
    "--nobalanced",
  ]
  settings = parse_settings(argv)
  path = tmp_path / "a.flags"
  path.write_text("".join(f"--{k}={v}\n" for k, v in settings.flags.items()))
  again = parse_settings([f"--flagfile={path}"])
  assert again.flags == settings.flags
  assert again.learning_rate == settings.learning_rate
  assert again.partition_arguments == {"balanced": False}


def test_where_a_run_goes_is_not_part_of_it():
  values = parse_flags(["--output=x", "--overwrite"])
  assert not {"output", "overwrite", "flagfile"} & flag_texts(values).keys()


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["--steps=0"], "--steps=0: 0 is not a positive integer"),
    (["--steps=many"], "--steps=many"),
    (["--workers=1"], "--workers=1 must be at least 2"),
    (["--stepz=3"], r"no flag --stepz \(did you mean --steps\?\)"),
    (["steps=3"], "'steps=3' is not a flag"),
    (["--steps"], "Missing value for flag --steps"),
    (["--model=mpl"], "--model=mpl: .*mlp"),
    (["--flagfile=none.flags"], "--flagfile=none.flags: No such file"),
    (["--aggregator=krumm"], r"krumm is unknown \(did you mean krum\?\); .*"),
    (["--attack=sign_flop"], r"sign_flop is unknown \(did you mean sign_flip"),
    (["--aggregator=trimmed_mean"], "--aggregator=trimmed_mean needs --trim"),
    (["--trim=2"], "--trim is an argument of .*trimmed_mean.*, not of mean"),
    (["--epsilon=2"], "--epsilon is an argument of --attack=.* no --attack"),
    (["--attack=sign_flip"], "--attack=sign_flip needs --byzantine"),
    (["--byzantine=1"], "--byzantine needs --attack"),
    (["--attack_start_step=3"], "--attack_start_step needs --attack"),
    (
      ["--attack=inner_product", "--byzantine=1"],
      "--attack=inner_product needs --epsilon",
    ),
    (["--attack=sign_flip", "--byzantine=3,20"], "there is no worker 20"),
    (["--attack=sign_flip", "--byzantine=3,3"], "names worker 3 more than"),
    (["--byzantine=a"], "--byzantine=a: 'a' is not one of integers and ranges"),
    (["--byzantine=5-3"], "the range '5-3' ends before it begins"),
    (
      ["--attack=sign_flip", "--byzantine=1", "--attack_start_step=300"],
      "--attack_start_step=300 is never reached; with --steps=300",
    ),
    (["--partition=dirichlet"], "--partition=dirichlet needs --dirichlet_al"),
    (["--shards_per_worker=2"], "argument of --partition=by_label, not of iid"),
    (["--learning_rate=0"], "--learning_rate=0.0 must be above 0"),
    (["--learning_rate=nan"], "--learning_rate=nan must be a finite number"),
    (["--momentum=0.5"], "--momentum is not for --optimizer=sgd"),
    (["--optimizer=momentum", "--momentum=1"], "--momentum=1.0 must be"),
    (["--sync_period=2"], "--sync_period is not for --optimizer=sgd; .*cser"),
    (
      ["--optimizer=cser", "--sync_period=0"],
      "--sync_period=0: 0 is not a",
    ),
    (["--optimizer=csea", "--compressor=grbs"], "'grbs' needs a number after"),
    (["--optimizer=csea", "--compressor=grbs:x"], "'grbs:x' needs a number"),
    (["--optimizer=csea", "--compressor=grb:2"], r"did you mean grbs\?"),
    (["--optimizer=csea", "--compressor=zero:2"], "zero takes no number"),
    (
      ["--optimizer=local_sgd", "--aggregator=median"],
      "--aggregator=median is not for --optimizer=local_sgd",
    ),
    (
      ["--optimizer=cser", "--attack=sign_flip", "--byzantine=1"],
      "--attack=sign_flip is on the updates that a rule aggregates",
    ),
    (["--decay_factor=0.5"], "--decay_factor needs --decay_steps"),
    (["--decay_steps=5,3"], "--decay_steps=5,3 must ascend"),
    (["--decay_steps=0"], "--decay_steps=0 must ascend, from 1 on"),
    (["--decay_steps=4", "--decay_factor=0"], "--decay_factor=0.0 must be"),
    (["--validation_batch_size=8"], "=mean, which takes no loss"),
    (["--checkpoint_every=70"], "--checkpoint_every=70 .* try 50 or 100"),
    (["--checkpoint_every=30"], "--checkpoint_every=30 .* try 50 or 100"),
    (["--overwrite"], "--overwrite needs --output"),
    (["--checkpoint_every=50"], "--checkpoint_every needs --output"),
    (
      ["--strategy=parameter_server"],
      "parameter_server is not for --algorithm=synchronous: .*=fed_avg",
    ),
    (["--replicas=2"], "--replicas is not for --strategy=none"),
    (["--heartbeat_timeout_s=9"], "_s is not for --strategy=none; it is taken"),
    (
      ["--strategy=multi_worker", "--heartbeat_timeout_s=0"],
      "--heartbeat_timeout_s=0.0 must be above 0",
    ),
    (
      ["--strategy=mirrored", "--replicas=3"],
      "--workers=20 cannot be spread evenly over --replicas=3",
    ),
  ],
)
def test_wrong_flags_are_named(argv, message):
  with pytest.raises(ValueError, match=message) as caught:
    parse_settings(argv)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["--data=mnist.nbz"], "'mnist.nbz' is neither a file nor one of"),
    (["--batch_size=500"], "batch_size=500 is more than the 71 examples"),
    (["--output=file/\x1b[2J"], r"=file/\\x1b\[2J cannot be written"),
    (["--workers=5000"], "--partition=iid: num_workers=5000 needs"),
    (["--output=file/x"], "--output=file/x cannot be written: Not a dir"),
    (["--output=file"], "--output=file is not a folder"),
    (["--output=."], "--output=. holds file, which is no part of a run"),
    (["--strategy=multi_worker"], "multi_worker needs the variable TF_CONFIG"),
  ],
)
def test_bad_input_is_one_line_and_no_trace(
  capsys, monkeypatch, tmp_path, argv, message
):
  (tmp_path / "file").write_text("")
  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv("TF_CONFIG", raising=False)
  assert main(argv) == 2
  out, err = capsys.readouterr()
  assert out == ""
  assert err.startswith("robust-train: ") and err.count("\n") == 1
  assert "Traceback" not in err
  assert re.search(message, err)


def test_errors_come_before_tensorflow_is_loaded():
  done = run("--aggregator=krumm")
  assert done.returncode == 2
  assert "did you mean krum?" in done.stderr
  done = run("--attack=sign_flip", "--byzantine=99")
  assert done.returncode == 2
  assert "there is no worker 99" in done.stderr


def test_help_teaches_and_loads_no_tensorflow():
  done = run("--help")
  assert done.returncode == 0
  for text in ("usage:", "examples:", "--flagfile", "krum(num_byzantine)"):
    assert text in done.stdout


def test_help_shows_every_flag_in_its_group():
  text = help_text()
  values = parse_flags([])
  for name in values:
    shown = f"--[no]{name}" if values[name].boolean else f"--{name}"
    assert shown in text or name == "undefok"
  assert max(map(len, text.splitlines())) <= 80
  assert text.index("the attack:") < text.index("  --byzantine=")


def test_signatures_are_those_of_the_functions():
  from robust_tf.aggregators import AGGREGATORS
  from robust_tf.attacks import ATTACKS

  tables = signatures()
  for name, functions in (
    ("partition", PARTITIONS),
    ("aggregator", AGGREGATORS),
    ("attack", ATTACKS),
  ):
    read = {k: v for k, v in tables[name].items() if k != LABEL_FLIP}
    assert read.keys() == functions.keys()
    for key, function in functions.items():
      expected = {
        parameter.name: parameter.default is parameter.empty
        for parameter in inspect.signature(function).parameters.values()
      }
      assert {k: v is None for k, v in read[key].items()} == expected


def test_optimizers_and_compressors_are_those_of_the_package():
  import robust_tf
  from robust_tf.compressors import COMPRESSORS
  from robust_tf.training import experiment

  assert job_flags.OPTIMIZERS.keys() == experiment.OPTIMIZERS.keys()
  for name, taken in job_flags.LOCAL.items():
    parameters = inspect.signature(experiment.OPTIMIZERS[name]).parameters
    offered = {x for names in job_flags.LOCAL.values() for x in names}
    assert set(taken) == offered & set(parameters)
    assert experiment.OPTIMIZERS[name].__name__ in robust_tf.__all__
  assert job_flags.COMPRESSORS.keys() == COMPRESSORS.keys()
  for name, argument in job_flags.COMPRESSORS.items():
    first = [*inspect.signature(COMPRESSORS[name]).parameters, None][0]
    assert argument == (None if first == "seed" else first)


def test_compressors_are_read_and_written_alike():
  argv = ["--optimizer=cser", "--reset_compressor=top_k:2.5"]
  settings = parse_settings([*argv, "--gradient_compressor=scaled_sign"])
  assert settings.optimizer_arguments == {
    "reset_compressor": job_flags.CompressorChoice("top_k", 2.5),
    "gradient_compressor": job_flags.CompressorChoice("scaled_sign"),
  }
  assert settings.flags["reset_compressor"] == "top_k:2.5"
  assert settings.flags["gradient_compressor"] == "scaled_sign"
  again = parse_settings([f"--{k}={v}" for k, v in settings.flags.items()])
  assert again.optimizer_arguments == settings.optimizer_arguments


def test_every_parameter_is_a_flag_that_is_unset_or_supplied():
  values = parse_flags([])
  for kind, table in signatures().items():
    assert kind in values
    for parameter in parameters(table):
      assert values[parameter].value is None
  assert not SUPPLIED & set(values) - {"aggregator", "attack", "byzantine",
    "learning_rate", "seed"}  # fmt: skip


def test_the_promised_experiments_are_there():
  assert {x.stem for x in CONFIGS} >= MUST_HAVE


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_experiment_is_sound_and_says_why(path):
  settings = parse_settings([f"--flagfile={path}"])
  assert settings.output is None
  assert path.read_text().startswith("# ")


@pytest.mark.parametrize(
  ("flag", "name", "meant"),
  [
    ("attack", "alie", "a_little_is_enough"),
    ("attack", "ALIE", "a_little_is_enough"),
    ("attack", "ipm", "inner_product"),
    ("attack", "SignFlip", "sign_flip"),
    ("aggregator", "trmean", "trimmed_mean"),
    ("aggregator", "cwmed", "median"),
    ("aggregator", "GeoMed", "geometric_median"),
    ("aggregator", "rfa", "geometric_median"),
    ("aggregator", "multikrum", "multi_krum"),
  ],
)
def test_other_name_of_the_field_is_understood(flag, name, meant):
  with pytest.raises(ValueError, match=rf"did you mean {meant}\?"):
    parse_settings([f"--{flag}={name}"])


def test_other_names_are_of_what_there_is():
  names = {x for table in choices.signatures().values() for x in table}
  names |= set(COMPRESSORS)
  assert set(choices.ALIASES.values()) <= names
  assert not choices.ALIASES.keys() & names


def test_version_is_that_of_the_distribution(capsys):
  assert main(["--version"]) == 0
  version = importlib.metadata.version("baechi-tf")
  assert capsys.readouterr().out == f"robust-train {version}\n"


# TF_CONFIG.


def config(**changes):
  value = {
    "cluster": {"worker": ["a:1", "b:2"]},
    "task": {"type": "worker", "index": 1},
    **changes,
  }
  return {"TF_CONFIG": json.dumps(value)}


def test_the_first_worker_is_the_chief():
  process = this_process("multi_worker", config())
  assert (process.count, process.index, process.is_chief) == (2, 1, False)
  first = config(task={"type": "worker", "index": 0})
  assert this_process("multi_worker", first).is_chief


def test_a_named_chief_is_the_chief():
  cluster = {"chief": ["a:1"], "worker": ["b:2", "c:3"]}
  chief = config(cluster=cluster, task={"type": "chief", "index": 0})
  assert this_process("multi_worker", chief).is_chief
  worker = config(cluster=cluster, task={"type": "worker", "index": 0})
  process = this_process("multi_worker", worker)
  assert (process.count, process.is_chief) == (3, False)


def test_one_process_needs_no_config():
  assert this_process("mirrored", {}).is_chief


@pytest.mark.parametrize(
  ("environment", "message"),
  [
    ({}, "needs the variable TF_CONFIG .*local_cluster"),
    ({"TF_CONFIG": "{"}, "TF_CONFIG={ is not as it must be"),
    ({"TF_CONFIG": "[]"}, "cluster is missing"),
    (config(task={"type": "worker"}), "index is missing"),
    (config(task={"type": "worker", "index": 2}), "no task worker 2"),
    (config(task={"type": "ps", "index": 0}), "no task ps 0"),
    (config(cluster={"ps": ["a:1"]}), "has the job ps; only workers"),
    (config(cluster={"worker": "a:1"}), "worker is missing, or no list"),
  ],
)
def test_unfit_tf_config_is_refused(environment, message):
  with pytest.raises(ValueError, match=message):
    this_process("multi_worker", environment)


# The folder.

FLAGS = {"learning_rate": "0.1", "steps": "100", "evaluate_every": "50"}


def open_folder(path, flags=FLAGS, overwrite=False):
  with output.run_folder(str(path), flags, overwrite):
    pass


def test_folder_is_made_with_the_runs_flags(tmp_path):
  open_folder(tmp_path / "a/b")
  assert (tmp_path / "a/b" / output.FLAGS).read_text() == (
    "--learning_rate=0.1\n--steps=100\n--evaluate_every=50\n"
  )


def test_folder_of_the_same_run_is_left_as_it_is(tmp_path):
  open_folder(tmp_path)
  (tmp_path / output.RESULT).write_text("{}")
  written = output.read_flags(str(tmp_path))
  open_folder(tmp_path, written)
  assert (tmp_path / output.RESULT).read_text() == "{}"


def test_another_run_is_refused_by_what_differs(tmp_path):
  open_folder(tmp_path)
  flags = {**output.read_flags(str(tmp_path)), "learning_rate": "0.2"}
  message = "another run: --learning_rate=0.1 there, --learning_rate=0.2 here"
  with pytest.raises(ValueError, match=message):
    open_folder(tmp_path, flags)
  flags = {**output.read_flags(str(tmp_path)), "trim": "2"}
  with pytest.raises(ValueError, match="no --trim there, --trim=2 here"):
    open_folder(tmp_path, flags)


def test_more_steps_go_on_with_the_same_run(tmp_path):
  open_folder(tmp_path)
  flags = output.read_flags(str(tmp_path))
  open_folder(tmp_path, {**flags, "steps": "200"})
  assert output.read_flags(str(tmp_path))["steps"] == "200"
  with pytest.raises(ValueError, match="--steps=200 there, --steps=100 here"):
    open_folder(tmp_path, flags)


def test_steps_that_ended_between_evaluations_cannot_be_more(tmp_path):
  open_folder(tmp_path, {**FLAGS, "steps": "70"})
  flags = output.read_flags(str(tmp_path))
  with pytest.raises(ValueError, match="--steps=70 there, --steps=200 here"):
    open_folder(tmp_path, {**flags, "steps": "200"})


def test_overwrite_takes_all_of_another_run_away(tmp_path):
  open_folder(tmp_path)
  (tmp_path / output.RESULT).write_text("{}")
  (tmp_path / output.CHECKPOINTS).mkdir()
  (tmp_path / output.CHECKPOINTS / "checkpoint").write_text("x")
  open_folder(tmp_path, {**FLAGS, "learning_rate": "0.2"}, overwrite=True)
  assert [x.name for x in tmp_path.iterdir()] == [output.FLAGS]


def test_overwrite_spares_what_is_no_run(tmp_path):
  (tmp_path / "thesis.txt").write_text("precious")
  with pytest.raises(ValueError, match="holds thesis.txt, which is no part"):
    open_folder(tmp_path, overwrite=True)
  assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_half_written_file_of_a_killed_process_is_taken_away(tmp_path):
  open_folder(tmp_path)
  (tmp_path / ".robust-train-0-result.json").write_text("{")
  open_folder(tmp_path, output.read_flags(str(tmp_path)))
  assert [x.name for x in tmp_path.iterdir()] == [output.FLAGS]


def test_folder_in_use_is_refused(tmp_path):
  with output.run_folder(str(tmp_path), FLAGS, False):
    with pytest.raises(ValueError, match="another process is at work in it"):
      open_folder(tmp_path)


def test_damaged_flags_are_named(tmp_path):
  (tmp_path / output.FLAGS).write_text("--stepz=3\n")
  with pytest.raises(ValueError, match="run.flags: there is no flag --stepz"):
    open_folder(tmp_path)


def test_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
  path = tmp_path / "a.json"
  path.write_text("old")
  with pytest.raises(OSError, match="full"):
    with output.replacing(str(path)) as temporary:
      pathlib.Path(temporary).write_text("half")
      raise OSError(28, "full", temporary)
  assert path.read_text() == "old"
  assert [x.name for x in tmp_path.iterdir()] == ["a.json"]
