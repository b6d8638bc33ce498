"""Plans a step that is known by its costs alone, without TensorFlow.

python docs/examples/cost_graph.py
"""

import networkx as nx

import baechi_tf
from baechi_tf.cost_graph import from_networkx

graph = nx.DiGraph()
graph.add_node("load", compute_time_us=10, output_bytes=[1000])
for i in range(4):
  graph.add_node(f"tower_{i}", compute_time_us=100, output_bytes=[1000])
  graph.add_edge("load", f"tower_{i}")
  graph.add_edge(f"tower_{i}", "join")
graph.nodes["join"]["compute_time_us"] = 10

cluster = baechi_tf.read_cluster("configs/clusters/4_v100_pcie.toml")
plan = baechi_tf.plan(from_networkx(graph), cluster)
for op, device in plan.placement.as_dict().items():
  print(op, device)
print(f"step {plan.simulation.makespan_us:.1f} us")
print(f"no plan is below {plan.bound.us:.1f} us")
