"""Shows the plans of all placers for one step, and how far from the bound.

python docs/examples/compare_placers.py
"""

import networkx as nx

import baechi_tf
from baechi_tf.cost_graph import from_networkx

# Eight layers of four ops, each of which needs two of the layer before.
graph = nx.DiGraph()
for layer in range(8):
  for i in range(4):
    graph.add_node(
      (layer, i),
      name=f"layer_{layer}/op_{i}",
      compute_time_us=20 + 10 * i,
      output_bytes=[50_000],
    )
    if layer:
      graph.add_edge((layer - 1, i), (layer, i))
      graph.add_edge((layer - 1, (i + 1) % 4), (layer, i))
graph = nx.convert_node_labels_to_integers(graph)

cluster = baechi_tf.read_cluster("configs/clusters/4_v100_pcie.toml")
plan = baechi_tf.plan(
  from_networkx(graph), cluster, budget=baechi_tf.Budget(evaluations=2000)
)
for candidate in plan.candidates:
  kept = "co-placed" if candidate.coplacement == "yes" else ""
  print(
    f"{candidate.placer:13} {candidate.makespan_us:7.1f} us {kept}".rstrip()
  )
best = plan.simulation.makespan_us
print(f"chosen: {plan.chosen.placer}, {best:.1f} us")
print(f"gap to the bound: {best / plan.bound.us - 1:.0%}")
