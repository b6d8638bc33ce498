"""Every page is in the index, and every link leads somewhere."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.S)


def links_of(text: str) -> list[str]:
  """Returns where a page's links lead, but for those to other places."""
  targets = _LINK.findall(_CODE.sub("", text))
  return [x for x in targets if not re.match(r"[a-z]+:", x)]


def anchors_of(text: str) -> set[str]:
  """Returns the anchors of a page's headings, as GitHub names them."""
  headings = re.findall(r"^#+ (.*)$", re.sub("```.*?```", "", text, flags=re.S),
                        re.M)  # fmt: skip
  return {
    re.sub(r"[^\w\- ]", "", x.lower()).replace(" ", "-") for x in headings
  }


@pytest.mark.parametrize("page", PAGES, ids=lambda x: str(x.relative_to(ROOT)))
def test_links_lead_somewhere(page):
  for link in links_of(page.read_text()):
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    assert target.exists(), link
    assert target.is_relative_to(ROOT), link
    if anchor:
      assert anchor in anchors_of(target.read_text()), link


def test_index_has_every_page_once():
  listed = links_of((DOCS / "README.md").read_text())
  inside = sorted(x for x in listed if not x.startswith("../"))
  pages = sorted(x.relative_to(DOCS).as_posix() for x in DOCS.rglob("*.md"))
  pages.remove("README.md")
  assert inside == pages


def test_links_and_anchors_are_read_as_markdown_has_them():
  text = "# A `b`, c\n[x](y.md#z) `[no](code)` [w](https://w)\n```\n# no\n```\n"
  assert links_of(text) == ["y.md#z"]
  assert anchors_of(text) == {"a-b-c"}
