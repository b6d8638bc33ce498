"""Cases that are made up."""

from tools.benchmarks.plan_accuracy import Case


def make_case(
  plan, predicted, measured, *, model="towers", network="loopback", moved=1
):
  """Returns a case of one round, or of several; times in microseconds."""
  rounds = measured if isinstance(measured, tuple) else (measured,)
  return Case(
    model=model,
    network=network,
    plan=plan,
    predicted_us=predicted,
    rounds_us=rounds,
    least_us=min(rounds),
    cpu_us=(2e3, 1e3),
    bytes_moved=moved,
  )
