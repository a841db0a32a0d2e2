"""Drawings show every step and event, and are safe to open and to paste."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from stepfleet import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from stepfleet.drawing import (
    draw_all_possible_flows,
    draw_all_possible_flows_mermaid,
    draw_all_possible_paths,
)
from stepfleet.drawing.layout import NODE_GAP, NODE_HEIGHT, Layout, layered

SVG_NAMESPACE = "http://www.w3.org/2000/svg"


class Draft(Event):
    text: str


class Question(InputRequiredEvent):
    pass


class Answer(HumanResponseEvent):
    pass


class Review(Workflow):
    """Writes, asks & improves."""

    @step
    async def write(self, ev: StartEvent) -> Draft:
        """Write the <first> draft."""
        return Draft(text="")

    @step
    async def ask(self, ev: Draft) -> Question:
        return Question()

    @step
    async def end(self, ev: Answer) -> StopEvent | Draft:
        return StopEvent()


Hostile = type("</text><script>alert(1)</script>&\"'", (Event,), {})


class Attack(Workflow):
    @step
    async def first(self, ev: StartEvent) -> Hostile:  # pyright: ignore[reportInvalidTypeForm]
        return Hostile()

    @step
    async def second(self, ev: Hostile) -> StopEvent:  # pyright: ignore[reportInvalidTypeForm]
        return StopEvent()


class Page(HTMLParser):
    """Reads a page and checks that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def svg_of(text: str) -> ET.Element:
    found = re.search(r"<svg .*?</svg>", text, re.DOTALL)
    assert found
    return ET.fromstring(found[0])


def labels(text: str) -> list[str | None]:
    return [element.text for element in svg_of(text).iter(f"{{{SVG_NAMESPACE}}}text")]


# -- Mermaid ---------------------------------------------------------------------------------------


def test_a_workflow_becomes_a_mermaid_flowchart() -> None:
    assert (
        draw_all_possible_flows_mermaid(Review)
        == """\
flowchart TD
    step_write["write"]:::step
    step_ask["ask"]:::step
    step_end["end"]:::step
    event_StartEvent(["StartEvent"]):::start
    event_Draft(["Draft"]):::event
    event_Answer(["Answer"]):::event
    event_Question(["Question"]):::event
    event_StopEvent(["StopEvent"]):::stop
    external_external_step["external_step"]:::external
    event_StartEvent --> step_write
    step_write --> event_Draft
    event_Draft --> step_ask
    step_ask --> event_Question
    event_Answer --> step_end
    step_end --> event_StopEvent
    step_end --> event_Draft
    external_external_step --> event_Answer
    event_Question --> external_external_step
    classDef step fill:#dbeafe,stroke:#1d4ed8,color:#111827
    classDef event fill:#f3f4f6,stroke:#4b5563,color:#111827
    classDef start fill:#dcfce7,stroke:#15803d,color:#111827
    classDef stop fill:#fee2e2,stroke:#b91c1c,color:#111827
    classDef external fill:#fef3c7,stroke:#b45309,color:#111827
"""
    )


def test_mermaid_is_written_to_a_file_that_is_named(tmp_path: Path) -> None:
    path = tmp_path / "flow.mmd"

    text = draw_all_possible_flows_mermaid(Review(), filename=path)

    assert path.read_text(encoding="utf-8") == text == draw_all_possible_flows_mermaid(Review)


def test_names_cannot_break_out_of_mermaid() -> None:
    text = draw_all_possible_flows_mermaid(Attack)
    (line,) = [line for line in text.splitlines() if "script" in line and "([" in line]

    assert re.fullmatch(r'    event_[\w-]+\(\["[^"<>&]+"\]\):::event', line)
    assert "#60;script#62;" in line


# -- HTML ------------------------------------------------------------------------------------------


def test_the_page_shows_every_step_and_event(tmp_path: Path) -> None:
    path = draw_all_possible_flows(Review, tmp_path / "flow.html")
    text = path.read_text(encoding="utf-8")
    page = Page(text)

    assert path == tmp_path / "flow.html"
    assert set(labels(text)) == {
        *("write", "ask", "end", "StartEvent", "Draft", "Question", "Answer", "StopEvent"),
        "external_step",
    }
    assert len(labels(text)) == 9
    assert "Review" in page.texts
    assert "Writes, asks & improves." in page.texts
    assert "Write the <first> draft." in page.texts
    assert draw_all_possible_flows_mermaid(Review) in "".join(page.texts)
    edges = [element for element in svg_of(text).iter() if "marker-end" in element.attrib]
    assert len(edges) == 9


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    text = draw_all_possible_flows(Review, tmp_path / "flow.html").read_text(encoding="utf-8")
    page = Page(text)

    assert set(re.findall(r"https?://[^\"'<> ]*", text)) == {SVG_NAMESPACE}
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(page.tags)
    assert {"src", "href", "xlink:href"}.isdisjoint(name for name, _ in page.attributes)
    assert re.findall(r"url\((.*?)\)|@import", text) == ["#arrow"] * 9


def test_names_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    text = draw_all_possible_flows(Attack, tmp_path / "flow.html").read_text(encoding="utf-8")

    assert "script" not in Page(text).tags
    assert Hostile.__name__ in labels(text)
    assert not re.search(r"[<>]", re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)[-1])


def test_the_page_has_a_name_of_its_own_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert draw_all_possible_flows(Review) == Path("workflow_all_flows.html")
    assert [path.name for path in tmp_path.iterdir()] == ["workflow_all_flows.html"]


def test_the_old_name_draws_the_same_and_warns_once(tmp_path: Path) -> None:
    new = draw_all_possible_flows(Review, tmp_path / "new.html")

    with pytest.warns(DeprecationWarning, match="draw_all_possible_flows") as warned:
        old = draw_all_possible_paths(Review, filename=tmp_path / "old.html")  # pyright: ignore[reportDeprecated]

    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert old.read_bytes() == new.read_bytes()


# -- the layout ------------------------------------------------------------------------------------


def laid_out(*edges: str, width: float = 40.0) -> Layout:
    """Lay out a graph whose nodes are letters and whose edges are pairs of them."""
    nodes = dict.fromkeys("".join(edges), width)
    return layered(nodes, [(edge[0], edge[1]) for edge in edges])


def rows(layout: Layout) -> list[set[str]]:
    heights = sorted({y for _, y in layout.nodes.values()})
    return [{name for name, (_, y) in layout.nodes.items() if y == height} for height in heights]


def overlapping(layout: Layout, width: float = 40.0) -> list[tuple[str, str]]:
    return [
        (one, other)
        for (one, (x1, y1)), (other, (x2, y2)) in combinations(layout.nodes.items(), 2)
        if y1 == y2 and abs(x1 - x2) < width + NODE_GAP - 0.001
    ]


def boxes_crossed(layout: Layout, width: float = 40.0) -> Iterable[tuple[tuple[str, str], str]]:
    """Yield edges that lead straight through a node, and the node."""
    for edge, points in layout.edges.items():
        for (x, y1), (_, y2) in pairwise(points):
            for name, (nx, ny) in layout.nodes.items():
                through = min(y1, y2) < ny < max(y1, y2) and abs(x - nx) < width / 2
                if through and abs(y1 - y2) <= NODE_HEIGHT:
                    yield edge, name


def test_every_edge_of_a_graph_without_loops_leads_down() -> None:
    layout = laid_out("ab", "ac", "bd", "cd", "ad")

    assert rows(layout) == [{"a"}, {"b", "c"}, {"d"}]
    assert all(points[0][1] < points[-1][1] for points in layout.edges.values())


def test_an_edge_that_closes_a_loop_leads_up_beside_the_nodes() -> None:
    layout = laid_out("ab", "bc", "cd", "db")

    assert rows(layout) == [{"a"}, {"b"}, {"c"}, {"d"}]
    assert layout.edges["d", "b"][0][1] > layout.edges["d", "b"][-1][1]
    assert list(boxes_crossed(layout)) == []


def test_a_graph_that_is_only_a_loop_is_cut_once() -> None:
    layout = laid_out("ab", "bc", "ca")

    assert rows(layout) == [{"a"}, {"b"}, {"c"}]


def test_both_ways_between_two_nodes_are_told_apart() -> None:
    layout = laid_out("ab", "ba")

    assert layout.edges["a", "b"][0][0] != layout.edges["b", "a"][-1][0]


def test_nodes_keep_their_distance_and_edges_go_around_them() -> None:
    layout = laid_out(
        *("ab", "ac", "ad", "ae", "ag", "ah", "bf", "cf", "df", "ef", "fa", "fh", "gh", "he")
    )

    assert overlapping(layout) == []
    assert list(boxes_crossed(layout)) == []


def test_two_chains_that_are_listed_crosswise_do_not_cross() -> None:
    layout = layered(dict.fromkeys("abcdef", 40.0), [(s, t) for s, t in ("ad", "bc", "ce", "df")])
    x = {name: place[0] for name, place in layout.nodes.items()}

    assert (x["a"] < x["b"]) == (x["d"] < x["c"]) == (x["f"] < x["e"])


def test_edges_do_not_cross_at_the_node_that_they_share() -> None:
    layout = laid_out("ad", "bd", "cd", "de", "df", "dg")
    x = {name: place[0] for name, place in layout.nodes.items()}

    entering = sorted("abc", key=lambda name: layout.edges[name, "d"][-1][0])
    leaving = sorted("gfe", key=lambda name: layout.edges["d", name][0][0])
    assert entering == sorted("abc", key=x.__getitem__)
    assert leaving == sorted("gfe", key=x.__getitem__)
    swapped = layered(dict.fromkeys("dba", 40.0), [("a", "d"), ("b", "d")])
    assert swapped.nodes["b"][0] < swapped.nodes["a"][0]
    assert swapped.edges["b", "d"][-1][0] < swapped.edges["a", "d"][-1][0]


def test_everything_is_inside_of_the_drawing() -> None:
    layout = laid_out("ab", "ac", "ad", "ae", "ba")
    places = [*layout.nodes.values(), *(p for points in layout.edges.values() for p in points)]

    assert all(0 <= x <= layout.width and 0 <= y <= layout.height for x, y in places)


def test_a_chain_of_thousands_is_no_problem_and_neither_is_nothing() -> None:
    names = [str(number) for number in range(3000)]

    assert layered({}, []).nodes == {}
    assert len(layered(dict.fromkeys(names, 40.0), pairwise(names)).nodes) == 3000
