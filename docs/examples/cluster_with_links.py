"""Reads a cluster file whose links differ, and plans a step for it.

python docs/examples/cluster_with_links.py
"""

import networkx as nx

import baechi_tf
from baechi_tf.cost_graph import from_networkx

cluster = baechi_tf.read_cluster("docs/examples/two_hosts.toml")
for (i, j), link in sorted(cluster.links.items()):
  print(
    f"{i} - {j}: {link.latency_us:g} us, then {link.bytes_per_us:g} bytes/us"
  )

# Two towers that meet: both ends of a fast link run them in 120 us, and a slow
# link would take 200 us more.
graph = nx.DiGraph()
for tower in ("left", "right"):
  graph.add_node(tower, compute_time_us=100, output_bytes=[10_000])
  graph.add_edge(tower, "join")
graph.nodes["join"]["compute_time_us"] = 10
plan = baechi_tf.plan(from_networkx(graph), cluster)
hosts = {name.split("/device")[0] for name in plan.placement.as_dict().values()}
print(f"step {plan.simulation.makespan_us:.0f} us on {len(hosts)} host")
