"""Processes meet and swap values, round after round."""

import concurrent.futures
import time

from tools.rendezvous import Rendezvous


def test_all_get_the_values_of_all_in_each_round(tmp_path):
  num_workers, num_rounds = 3, 20

  def work(index):
    meeting = Rendezvous(str(tmp_path), index, num_workers)
    return [meeting.meet([index, r]) for r in range(num_rounds)]

  with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
    results = list(pool.map(work, range(num_workers)))
  for swapped in results:
    assert swapped == [
      [[index, r] for index in range(num_workers)] for r in range(num_rounds)
    ]


def test_nobody_goes_on_before_the_last_is_there(tmp_path):
  arrived = []

  def work(index):
    if index == 1:
      time.sleep(0.2)
    arrived.append(index)
    Rendezvous(str(tmp_path), index, 2).meet()
    return list(arrived)

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    for seen in pool.map(work, range(2)):
      assert sorted(seen) == [0, 1]
