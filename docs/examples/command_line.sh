#!/usr/bin/env bash
# Plans a cost graph, writes the plan with a report, and predicts the step of the
# plan that was written:
#
#     docs/examples/command_line.sh OUTPUT_DIRECTORY
set -euo pipefail
output=$1
cluster=configs/clusters/4_v100_pcie.toml

cat > "$output/graph.json" <<'JSON'
{"nodes": [
  {"id": "load", "compute_time_us": 10, "output_bytes": [1000]},
  {"id": "left", "compute_time_us": 100, "output_bytes": [1000]},
  {"id": "right", "compute_time_us": 100, "output_bytes": [1000]},
  {"id": "join", "compute_time_us": 10}],
 "edges": [
  {"source": "load", "target": "left"}, {"source": "load", "target": "right"},
  {"source": "left", "target": "join"}, {"source": "right", "target": "join"}]}
JSON

baechi place "$output/graph.json" "$output/plan.json" --cluster $cluster \
  --search-evaluations 200 --report "$output/report"
baechi simulate "$output/graph.json" "$output/plan.json" --cluster $cluster
ls "$output/report"
