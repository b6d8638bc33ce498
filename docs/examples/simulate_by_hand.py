"""Predicts the step of a placement that was made by hand.

python docs/examples/simulate_by_hand.py
"""

import networkx as nx
import numpy as np

import baechi_tf
from baechi_tf.cost_graph import from_networkx

graph = nx.DiGraph()
graph.add_node("a", compute_time_us=30, output_bytes=[120_000])
graph.add_node("b", compute_time_us=50, output_bytes=[8])
graph.add_node("c", compute_time_us=50, output_bytes=[8])
graph.add_node("d", compute_time_us=20)
graph.add_edges_from([("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])
graph = from_networkx(graph)

cluster = baechi_tf.read_cluster("configs/clusters/4_v100_pcie.toml")
placements = {"one device": [0, 0, 0, 0], "c on the other": [0, 0, 1, 0]}
for name, device in placements.items():
  step = baechi_tf.simulate(graph, cluster, np.array(device))
  print(f"{name}: {step.makespan_us:.0f} us")
  for op, start, finish in zip(
    graph.names, step.start_time_us, step.finish_time_us, strict=True
  ):
    print(f"  {op} from {start:.0f} to {finish:.0f} us")
