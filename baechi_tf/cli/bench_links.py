"""`baechi bench-links`: measures links, for a cluster file."""

import argparse
import dataclasses
import itertools
import json
import math
import signal

from baechi_tf.cli.help import add_json
from baechi_tf.cli.help import add_subparser
from baechi_tf.cli.help import warn_of_open_server
from baechi_tf.cli.progress import Progress
from baechi_tf.cli.tensorflow_import import load_tensorflow
from baechi_tf.tables import parse_bytes

_DESCRIPTION = """\
Sends tensors of 1 B to 64 MiB to and fro between every two devices, fits
latency and bandwidth, and prints them as TOML to paste into a cluster file.
Between two processes (Linux) it also measures the processor time that sending
and receiving take and what a step on the second device costs beforehand.
To measure between hosts, start one process on each, with the same --host
options; all but the one that measures also get --serve. TensorFlow's servers
listen on every interface and ask for no password: measure between hosts on a
trusted network only.
"""
_EXAMPLE = """\
baechi bench-links --device /device:GPU:0 --device /device:GPU:1

on b, then on a:
baechi bench-links --host a:2222 --host b:2222 --task 1 --serve
baechi bench-links --host a:2222 --host b:2222 --task 0
"""
_LOCAL = ("/device:CPU:0", "/device:CPU:1")
_LARGEST = "64 MiB"


def add_parser(subparsers) -> None:
  """Adds the subcommand."""
  parser = add_subparser(
    subparsers,
    "bench-links",
    run,
    summary="measure the links between devices or hosts",
    description=_DESCRIPTION,
    example=_EXAMPLE,
  )
  parser.add_argument(
    "--device",
    metavar="D",
    action="append",
    default=[],
    help="a TensorFlow device name, given at least twice; default: the first"
    " CPU of every host, without hosts two CPU devices of this process",
  )
  parser.add_argument(
    "--host",
    metavar="ADDRESS:PORT",
    action="append",
    default=[],
    help="a host, in the same order everywhere",
  )
  parser.add_argument(
    "--task",
    metavar="N",
    type=int,
    default=0,
    help="which of the hosts this one is, counted from 0; default: 0",
  )
  parser.add_argument(
    "--serve",
    action="store_true",
    help="wait for another host to measure; ends when it is killed",
  )
  parser.add_argument(
    "--largest",
    metavar="SIZE",
    default=_LARGEST,
    help=f"the largest tensor to send; default: {_LARGEST}",
  )
  add_json(parser)


def run(args: argparse.Namespace) -> None:
  """Runs the subcommand."""
  largest = parse_bytes(args.largest)
  devices = args.device or _default_devices(args.host)
  _check(args, devices)
  load_tensorflow()
  # Imports TensorFlow.
  from baechi_tf.costs import communication
  from baechi_tf.costs import processor_time

  target = ""
  if args.host:
    warn_of_open_server()
    server = communication.start_server(args.host, args.task)
    while args.serve:
      signal.pause()  # server.join() would let no signal end it
    communication.check_hosts(args.host)
    target = server.target
  sizes = [x for x in communication.SIZES if x <= largest]
  links = []
  with Progress() as progress:
    for a, b in itertools.combinations(devices, 2):
      times = communication.measure_link(
        a,
        b,
        target=target,
        sizes=sizes,
        progress=progress.count(f"measuring {a} to {b}: size"),
      )
      fit = communication.fit_link(times.sizes, times.times_us)
      processor = None
      if not processor_time.share_process(a, b):
        processor = processor_time.measure_processor_time(
          a,
          b,
          target=target,
          sizes=sizes,
          progress=progress.count(f"processor time, {a} to {b}: size"),
        )
      links.append((a, b, times, fit, processor))
  fits = [x and processor_time.fit_processor_time(x) for *_, x in links]
  if args.json:
    fields = [_fields(*x) for x in zip(links, fits, strict=True)]
    print(json.dumps({"links": fields}))
  else:
    blocks = [
      communication.to_toml(a, b, fit)
      + (processor_time.to_toml(processor) if processor else "")
      for (a, b, _, fit, _), processor in zip(links, fits, strict=True)
    ]
    print("\n".join(blocks), end="")


def _default_devices(hosts: list[str]) -> tuple[str, ...]:
  if not hosts:
    return _LOCAL
  # Full names, as a cluster file has them.
  return tuple(
    f"/job:worker/replica:0/task:{i}/device:CPU:0" for i in range(len(hosts))
  )


def _check(args: argparse.Namespace, devices: list[str]) -> None:
  if len(set(args.host)) < len(args.host):
    raise ValueError(
      f"--host names one host twice: {', '.join(args.host)}; each process needs"
      " its own"
    )
  if args.task and args.task not in range(len(args.host)):
    raise ValueError(
      f"--task {args.task} is none of the {len(args.host)} hosts"
    )
  if len(devices) < 2 or len(set(devices)) < len(devices):
    raise ValueError(
      f"a link joins two different devices, got {', '.join(devices)}"
    )


def _fields(link, processor_fit) -> dict:
  a, b, times, fit, processor = link
  fields = {
    "devices": [a, b],
    "latency_us": fit.latency_us,
    # JSON has no infinity: null where the size makes no difference.
    "bytes_per_us": fit.bytes_per_us
    if math.isfinite(fit.bytes_per_us)
    else None,
    "r_squared": fit.r_squared,
    "sizes": list(times.sizes),
    "times_us": list(times.times_us),
  }
  if processor is None:
    return fields
  measured = dataclasses.asdict(processor)
  return (
    fields
    | dataclasses.asdict(processor_fit)
    | {
      f"{name}_times_us": list(measured[f"{name}_us"])
      for name in ("send", "receive", "in_flight")
    }
  )
