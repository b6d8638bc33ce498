"""The report's page in a real browser: Chromium, without a window."""

import json
import re
import shutil

import numpy as np
import pytest

from baechi_tf.bounds.relaxations import relaxed_bound
from baechi_tf.cluster import Cluster
from baechi_tf.cluster import Device
from baechi_tf.cluster import Link
from baechi_tf.op_graph import OpGraph
from baechi_tf.reports.page import page
from baechi_tf.reports.page_data import MOST_OPS
from baechi_tf.reports.page_data import plan_fields
from baechi_tf.reports.summary import summarize
from baechi_tf.simulator import simulate
from tests import contracts
from tools.known_optimum import known_optimum

HOSTILE = (
  "</script><img src=x onerror=document.title='hacked'>",
  "<b>bold</b>&amp;&lt;",
  "\u202eright to left\u2028next\x1b[2J",
  "long/" + "x" * 300,
  "{{script}}",
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
in_browser = pytest.mark.skipif(
  CHROMIUM is None, reason="needs Chromium: apt-get install chromium"
)


@pytest.fixture(scope="module")
def browser():
  sync_api = pytest.importorskip("playwright.sync_api")
  with sync_api.sync_playwright() as playwright:
    chromium = playwright.chromium.launch(
      executable_path=CHROMIUM, args=["--no-sandbox"]
    )
    yield chromium
    chromium.close()


@pytest.fixture
def opened(browser, tmp_path):
  """Opens a page's text; fails if it logs an error or asks for anything."""
  wrong, contexts = [], []

  def opened(text, *, width=1280, height=800, **kwargs):
    path = tmp_path / f"report{len(contexts)}.html"
    path.write_text(text, encoding="utf-8")
    context = browser.new_context(
      viewport={"width": width, "height": height}, **kwargs
    )
    contexts.append(context)
    shown = context.new_page()
    shown.on("console", lambda message: wrong.append(message.text))
    shown.on("pageerror", lambda error: wrong.append(str(error)))
    shown.on("request", lambda x: asked(x.url, path.as_uri()))
    shown.goto(path.as_uri())
    return shown

  def asked(url, expected):
    if url != expected:
      wrong.append(f"asked for {url}")

  yield opened
  for context in contexts:
    context.close()
  assert wrong == []


def text_of(graph, cluster, device, *, model="m", plans=1) -> str:
  simulation = simulate(graph, cluster, np.array(device))
  bound = relaxed_bound(graph, cluster)
  summary = summarize(graph, cluster, simulation, bound, model=model)
  shown = [
    plan_fields(graph, cluster, simulation, f"plan {i}") for i in range(plans)
  ]
  return "".join(page(graph, cluster, summary, shown))


def data_of(text: str) -> dict:
  """Returns the JSON in a page, as any program could read it."""
  (found,) = re.findall(
    '<script type="application/json" id="data">(.*?)</script>', text, re.S
  )
  return json.loads(found)


@pytest.fixture(scope="module")
def step():
  """A step of 200 ops on three devices."""
  graph, cluster, _, device = known_optimum(200, 3, seed=1)
  return graph, cluster, device


def fork(names=("a", "b", "c", "d")) -> OpGraph:
  """a -> (b, c) -> d: 2, 10, 10 and 3 us; a's 20 bytes take 3 us to send."""
  return OpGraph.build(
    names,
    np.array([2.0, 10.0, 10.0, 3.0, 1.0][: len(names)]),
    persistent_bytes=[0, 500, 0, 0, 0][: len(names)],
    output_op=[0, 1, 2],
    output_bytes=[20, 20, 20],
    edge_source=[0, 0, 1, 2],
    edge_output=[0, 0, 0, 0],
    edge_target=[1, 2, 3, 3],
  )


def test_page_says_what_the_simulator_says():
  cluster = contracts.two_cpus()
  device = np.array([0, 1, 0, 0])
  simulation = simulate(fork(), cluster, device)
  data = data_of(text_of(fork(), cluster, device))
  (plan,) = data["plans"]
  assert plan["makespan_us"] == simulation.makespan_us
  assert plan["ops"] == {
    "op": [0, 1, 2, 3],
    "device": [0, 1, 0, 0],
    "start": simulation.start_time_us.round(3).tolist(),
    "end": simulation.finish_time_us.round(3).tolist(),
  }
  assert plan["transfers"]["op"] == [0, 1]
  assert plan["transfers"]["bytes"] == [20, 20]
  assert [x["bytes"] for x in plan["peaks"]] == (
    simulation.peak_memory_bytes.tolist()
  )
  assert plan["peaks"][1]["kinds"] == {
    "persistent": 500,
    "outputs": 20,
    "temporary": 0,
    "received inputs": 20,
  }
  assert plan["peaks"][1]["largest"][0] == {
    "op": 1,
    "kind": "persistent",
    "bytes": 500,
  }
  assert {x["op"] for x in plan["matter"]} == {0, 1, 2, 3}


def test_verdict_names_the_device_as_the_timeline_does():
  cluster = Cluster(
    tuple(
      Device(f"/job:w/replica:0/task:{task}/device:CPU:0", "CPU", 10**9)
      for task in range(2)
    ),
    Link(1.0, 10.0),
  )
  data = data_of(text_of(fork(), cluster, [0, 1, 0, 0]))
  labels = [x["label"] for x in data["devices"]]
  assert labels == ["0/CPU:0", "1/CPU:0"]
  assert "as fast as on 0/CPU:0 alone" in data["verdict"]


def test_names_from_the_model_are_never_markup():
  text = text_of(fork(HOSTILE), contracts.two_cpus(), [0, 1, 0, 0, 0])
  assert tuple(data_of(text)["names"]) == HOSTILE
  assert text.count("<script") == 2
  assert "<img" not in text
  assert "\u2028" not in text


def test_page_of_twenty_thousand_ops_is_small():
  graph, cluster, _, device = known_optimum(20_000, 4)
  text = text_of(graph, cluster, device)
  assert len(text.encode()) < 5_000_000
  assert len(data_of(text)["plans"][0]["ops"]["op"]) == graph.num_ops


def test_many_more_ops_are_left_out_with_a_note():
  graph, cluster, _, device = known_optimum(MOST_OPS + 1_000, 4)
  data = data_of(text_of(graph, cluster, device))
  (plan,) = data["plans"]
  assert len(plan["ops"]["op"]) == MOST_OPS
  assert "longest of 51,000 ops" in data["notes"][0]
  drawn = set(plan["ops"]["op"])
  assert {index for kind, index, _ in plan["critical"] if kind == "op"} <= drawn
  peaks = [max(x["bytes"]) for x in plan["memory"]]
  assert peaks == [x["bytes"] for x in plan["peaks"]]


@in_browser
def test_figures_details_and_search_equal_the_json(opened, step):
  text = text_of(*step)
  data, shown = data_of(text), opened(text)
  assert shown.text_content("#verdict") == data["verdict"]
  assert f"{data['summary']['speedup']:.2f} ×" in shown.text_content("#figures")
  assert shown.locator("#devices tbody tr").count() == 3
  plan = data["plans"][0]
  op = plan["ops"]["op"][17]
  shown.fill("#search", data["names"][op])
  assert shown.text_content("#matches") == "1 found"
  shown.press("#search", "Enter")
  assert shown.text_content("#matches") == "1 of 1"
  details = shown.text_content("#details")
  assert data["names"][op] in details
  assert data["devices"][plan["ops"]["device"][17]]["label"] in details
  took = plan["ops"]["end"][17] - plan["ops"]["start"][17]
  assert f"({took:g} µs)" in details
  begin, end = (
    float(shown.get_attribute("canvas", f"data-{x}")) for x in ("begin", "end")
  )
  assert begin <= plan["ops"]["start"][17] < plan["ops"]["end"][17] <= end
  assert end - begin < plan["makespan_us"]


@in_browser
def test_clicking_an_op_on_the_timeline_selects_it(opened):
  """On a canvas from 2 to 2 px before its end, b runs from 5 to 15 of 21 us."""
  text = text_of(fork(), contracts.two_cpus(), [0, 1, 0, 0])
  data, shown = data_of(text), opened(text)
  plan = data["plans"][0]
  box = shown.locator("canvas").bounding_box()
  middle = (plan["ops"]["start"][1] + plan["ops"]["end"][1]) / 2
  x = 2 + middle / plan["makespan_us"] * (box["width"] - 4)
  lanes = shown.evaluate("timelines[0].top(1)")
  shown.locator("canvas").click(position={"x": x, "y": lanes + 10})
  assert shown.text_content("#details strong") == "b"
  shown.locator("canvas").click(position={"x": 3, "y": lanes + 10})
  assert shown.locator("#details strong").count() == 0


@in_browser
def test_zoom_by_buttons_wheel_and_keys(opened, step):
  shown = opened(text_of(*step, plans=2))

  def ranges():
    shown.evaluate("new Promise((done) => requestAnimationFrame(done))")
    shown.evaluate("new Promise((done) => requestAnimationFrame(done))")
    return [
      tuple(float(x.get_attribute(f"data-{y}")) for y in ("begin", "end"))
      for x in shown.locator("canvas").all()
    ]

  first, second = ranges()
  assert first == second  # plans share the axis
  whole = first
  shown.click("#zoom-in")
  (begin, end), other = ranges()
  assert (begin, end) == other
  assert end - begin == pytest.approx((whole[1] - whole[0]) / 2)
  shown.click("#zoom-all")
  shown.locator("canvas").first.hover()
  shown.mouse.wheel(0, -400)
  (begin, end), _ = ranges()
  assert end - begin == pytest.approx((whole[1] - whole[0]) / np.e, rel=1e-3)
  shown.locator("canvas").first.focus()
  shown.keyboard.press("ArrowRight")
  (later, _), _ = ranges()
  assert later > begin
  shown.keyboard.press("0")
  assert ranges()[0] == whole


@in_browser
def test_hostile_names_do_nothing_but_show(opened):
  text = text_of(
    fork(HOSTILE), contracts.two_cpus(), [0, 1, 0, 0, 0], model=HOSTILE[0]
  )
  shown = opened(text)
  assert shown.text_content("h1") == HOSTILE[0]
  assert "hacked" not in shown.title().replace(HOSTILE[0], "")
  assert shown.locator("img, b").count() == 0
  buttons = shown.locator("#matter button").all_text_contents()
  assert set(buttons) == set(HOSTILE)


@in_browser
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_laptop_and_phone(opened, step, width, height, scheme):
  shown = opened(
    text_of(*step), width=width, height=height, color_scheme=scheme
  )
  assert shown.evaluate("document.documentElement.scrollWidth") <= width
  assert shown.evaluate("document.documentElement.dataset.theme") == scheme
  shown.click("#theme")
  other = {"light": "dark", "dark": "light"}[scheme]
  assert shown.evaluate("document.documentElement.dataset.theme") == other


@in_browser
def test_many_ops_are_few_rectangles(opened):
  """At any zoom no more than two colours a pixel of a lane, and the memory."""
  graph, cluster, _, device = known_optimum(20_000, 4)
  shown = opened(text_of(graph, cluster, device))
  drawn = int(shown.get_attribute("canvas", "data-drawn"))
  assert 0 < drawn < 4 * 3 * 1280 + 1200
