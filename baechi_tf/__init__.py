"""Places machine-learning graphs on devices that are too small for them.

The names below are the public ones. They are imported when they are first
used: planning a cost graph needs no TensorFlow, and does not wait for it.
"""

import importlib

_PUBLIC = {
  "Budget": "search.budget",
  "Cluster": "cluster",
  "CostSource": "costed_model",
  "CostedModel": "costed_model",
  "Device": "cluster",
  "DeviceType": "cluster",
  "GraphItem": "graph_item",
  "InfeasiblePlacementError": "placement",
  "Link": "cluster",
  "OpGraph": "op_graph",
  "Placement": "placement",
  "Plan": "planner",
  "Simulation": "simulator",
  "connect": "runner.connection",
  "cost_item": "pipeline",
  "export_keras": "keras_placement.export",
  "item_from_function": "python_item",
  "item_from_keras": "python_item",
  "load": "saved_model",
  "lower_bound": "bounds",
  "place": "pipeline",
  "place_keras": "keras_placement.place",
  "plan": "planner",
  "read_cluster": "cluster",
  "read_cost_graph": "cost_graph",
  "read_item": "graph_item",
  "read_profile": "costs.profile",
  "serve": "runner.start",
  "simulate": "simulator",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
  if name not in _PUBLIC:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module = importlib.import_module(f"{__name__}.{_PUBLIC[name]}")
  return getattr(module, name)


def __dir__() -> list[str]:
  return sorted([*globals(), *_PUBLIC])
