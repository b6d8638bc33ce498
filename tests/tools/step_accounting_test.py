from baechi_tf.graph_item import read_item
from tests import models
from tools import step_accounting
from tools.step_accounting import Accounting


def test_account_counts_the_ops_of_a_step(tmp_path):
  path = models.save_cnn(tmp_path / "cnn")
  item = read_item(path)
  x = step_accounting.account(path, "train", item, batch_size=2, num_steps=1)
  assert x.num_ops == len(item.op_names)
  assert (x.num_missing, x.num_fused) == (0, 2)
  assert min(x.ops_us, x.step_us, x.function_us, x.call_us) > 0


def test_row_is_of_the_round_with_the_median_share():
  rounds = [
    Accounting(1234, 0, 2, ops_us, 10_000.0, 8_000.0, 2_000.0)
    for ops_us in (9_000.0, 4_000.0, 1_000.0)
  ]
  line = "| model | 1,234 | 0 | 2 | 4.00 | 10.00 | 8.00 | 40% | 50% | 50% |"
  assert step_accounting.row("model", rounds) == line
