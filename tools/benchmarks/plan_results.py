"""The file in which `tools.benchmarks.plans` keeps what it has measured.

It is written after each group, so that an interrupted run goes on where it was.
"""

import dataclasses
import json
import os
from collections.abc import Sequence

from tools.benchmarks.plan_accuracy import Case
from tools.json_file import write_json


@dataclasses.dataclass
class Results:
  """The measurements so far.

  Attributes:
    machine: the processor, its cores, and TensorFlow's version.
    cases: of all groups that are done.
    links: by "model, network", the cluster file with the link as measured then.
    memory: the verdict on a model that is too large for a process, as a list
      of its fields; empty if it was not measured.
    notes: by what was skipped, why.
  """

  machine: str
  cases: list[Case] = dataclasses.field(default_factory=list)
  links: dict[str, str] = dataclasses.field(default_factory=dict)
  memory: list = dataclasses.field(default_factory=list)
  notes: dict[str, str] = dataclasses.field(default_factory=dict)

  def has(self, model: str, network: str, plans: Sequence[str]) -> bool:
    """Returns whether all these plans of a model have run on a network."""
    done = {
      x.plan for x in self.cases if (x.model, x.network) == (model, network)
    }
    return done.issuperset(plans)

  def add(self, cases: Sequence[Case]) -> None:
    """Adds a group's cases in place of what there was of that group."""
    new = {(x.model, x.network) for x in cases}
    kept = [x for x in self.cases if (x.model, x.network) not in new]
    self.cases = [*kept, *cases]


def read(path: str, machine: str) -> Results:
  """Returns the results in a file, or none if there is no such file.

  Args:
    path: of the file.
    machine: the machine on which this process measures.

  Raises:
    ValueError: the file holds no such results, or those of another machine.
    OSError: the file cannot be read.
  """
  if not os.path.exists(path):
    return Results(machine)
  with open(path, encoding="utf-8") as file:
    try:
      content = json.load(file)
      results = Results(**content)
      results.cases = [_case(x) for x in results.cases]
    except (ValueError, TypeError, KeyError) as error:
      raise ValueError(
        f"{path} holds no results of this tool ({error}); remove it or give"
        " another --results"
      ) from None
  if results.machine != machine:
    raise ValueError(
      f"{path} was measured on {results.machine}, not on {machine}; give"
      " another --results"
    )
  return results


def _case(fields: dict) -> Case:
  arrays = {key: tuple(fields[key]) for key in ("rounds_us", "cpu_us")}
  return Case(**{**fields, **arrays})


def write(path: str, results: Results) -> None:
  """Writes the results to a file, at once.

  Raises:
    OSError: it cannot be written.
  """
  temporary = f"{path}.new"
  write_json(temporary, dataclasses.asdict(results))
  os.replace(temporary, path)
