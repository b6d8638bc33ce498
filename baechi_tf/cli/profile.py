"""`baechi profile`: measures what each op of a model costs here."""

import argparse
import json

from baechi_tf import atomic
from baechi_tf.cli import model_input
from baechi_tf.cli.help import add_json
from baechi_tf.cli.help import add_subparser
from baechi_tf.cli.help import path
from baechi_tf.cli.progress import Progress
from baechi_tf.output_path import file_output
from baechi_tf.printable import printable
from baechi_tf.reports.quantities import duration
from baechi_tf.reports.quantities import table

_DESCRIPTION = """\
Runs a model's step on this machine several times, one op at a time, and writes
the median time and the bytes of each op to a profile file (TensorFlow's
OpPerformanceList) for `place --profile`. Inputs are made up unless given.
"""
_EXAMPLE = """\
baechi profile model/ model.profile --signature train --batch-size 32
baechi place model/ placed/ --cluster configs/clusters/2_cpus.toml \\
    --signature train --profile model.profile
"""
_SLOWEST = 10  # op types shown


def add_parser(subparsers) -> None:
  """Adds the subcommand."""
  parser = add_subparser(
    subparsers,
    "profile",
    run,
    summary="measure what each op of a model costs on this machine",
    description=_DESCRIPTION,
    example=_EXAMPLE,
  )
  parser.add_argument("model", type=path, metavar="MODEL", help="the model")
  parser.add_argument(
    "output", type=path, metavar="OUT", help="the profile file"
  )
  parser.add_argument(
    "--device",
    choices=["CPU", "GPU"],
    default="CPU",
    help="which device of this machine to measure on; default: CPU",
  )
  parser.add_argument(
    "--device-type",
    metavar="T",
    help="what cluster files call this type of device, such as V100; default:"
    " CPU or GPU",
  )
  parser.add_argument(
    "--num-steps",
    metavar="N",
    type=int,
    default=10,
    help="steps to measure; default: 10",
  )
  parser.add_argument(
    "--warmup",
    metavar="N",
    type=int,
    default=3,
    help="steps to run before and drop; default: 3",
  )
  parser.add_argument(
    "--overwrite", action="store_true", help="replace OUT if it exists"
  )
  add_json(parser)
  model_input.add_step_arguments(parser)
  model_input.add_rewrite_argument(parser)
  model_input.add_input_arguments(parser)


def run(args: argparse.Namespace) -> None:
  """Runs the subcommand."""
  if model_input.is_cost_graph(args.model):
    raise ValueError(f"{args.model} is a cost graph, which cannot run")
  source = model_input.input_source(args)
  output = file_output(args.output, args.overwrite)
  output.check(apart_from=tuple(x for x in (args.model, args.inputs) if x))
  device_type = args.device_type or args.device
  with Progress() as progress:
    item = model_input.read_step(args, progress)
    # These import TensorFlow.
    from baechi_tf.costs.measurement import measure_here
    from baechi_tf.costs.profile import profile_bytes
    from baechi_tf.pipeline import input_values

    costs = measure_here(
      item,
      input_values(item, source),
      args.device,
      inputs=source.inputs,
      num_steps=args.num_steps,
      warmup=args.warmup,
      progress=progress,
    )
    with atomic.publishing() as outputs:
      data = profile_bytes({device_type: costs})
      outputs.write_bytes(args.output, [data], output.check_replaced)
      text = _text(args, item, device_type, costs)
  print(text)


def _text(args, item, device_type: str, costs) -> str:
  """Returns what is printed."""
  by_type = {}
  for cost in costs.values():
    count, time_us = by_type.get(cost.op_type, (0, 0.0))
    by_type[cost.op_type] = (count + 1, time_us + cost.compute_time_us)
  slowest = sorted(by_type.items(), key=lambda x: (-x[1][1], x[0]))
  total_us = sum(x.compute_time_us for x in costs.values())
  if args.json:
    fields = {
      "model": args.model,
      "output": args.output,
      "device_type": device_type,
      "num_ops": len(item.op_names),
      "num_measured": len(costs),
      "compute_time_us": total_us,
      "op_types": {
        name: {"num_ops": count, "compute_time_us": time_us}
        for name, (count, time_us) in slowest
      },
    }
    return json.dumps(fields)
  rows = [
    [printable(name), f"{count:,}", duration(time_us)]
    for name, (count, time_us) in slowest[:_SLOWEST]
  ]
  return (
    f"{printable(args.model)}: {len(costs):,} of {len(item.op_names):,} ops"
    f" measured on {printable(device_type)}, {duration(total_us)} in all\n\n"
    f"{table(['op type', 'ops', 'time'], rows)}\n"
    f"wrote {printable(args.output)}"
  )
