import json
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import xmlschema
from absent import absent
from builders import model_info, synthetic_trace
from builders_source import random_subgraph
from hypothesis import given, settings
from hypothesis import strategies as st

from graphtrace import schema
from graphtrace.errors import OptionError
from graphtrace.export import export_gephi, export_graphml, printable

HERE = Path(__file__).parent
GEPHI_CHECK = HERE.parent.parent / "shared" / "gephi" / "gephi-check"
GEXF = xmlschema.XMLSchema(str(HERE / "gexf" / "gexf-1.3.xsd"))
NS = "{http://gexf.net/1.3}"
VIZ = "{http://gexf.net/1.3/viz}"
NASTY = ["<s>", '"', "&amp;", " a\nb", "\x00\x1b", "\ufffe\uffff", "]]>", "\t'\r", "🙂 é"]


def nasty(subgraph):
    tokens = [NASTY[i % len(NASTY)] for i in range(subgraph.layout.n_tokens)]
    return replace(subgraph, tokens=tokens, model='a<b>&"c"\x01@0')


@pytest.mark.parametrize("collapse", [False, True])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), parallel=st.booleans(), ties=st.booleans(), n=st.integers(1, 9))
def test_every_file_is_valid(tmp_path_factory, collapse, seed, parallel, ties, n):
    subgraph = nasty(random_subgraph(seed, n=n, parallel=parallel, ties=ties))
    path = tmp_path_factory.mktemp("gexf") / "g.gexf"
    export_gephi(subgraph, path, collapse)
    GEXF.validate(str(path))
    root = ET.parse(path).getroot()
    assert len(root.findall(f".//{NS}node")) == len(subgraph.node_ids)


def test_schema_refuses_what_gephi_would_lose(tmp_path):
    path = export_gephi(random_subgraph(0, k=20), tmp_path / "g.gexf")
    good = path.read_text()
    for old, new in (
        ('kind="', 'kin="'),
        ('version="1.3"', 'version="1.2"'),
        ('weight="', 'weight="-'),
        ('id="e1"', 'id="e0"'),
        ('start="1.0"', 'start="one"'),
        ('source="', 'source="9'),
    ):
        assert old in good
        path.write_text(good.replace(old, new))
        with pytest.raises(xmlschema.XMLSchemaValidationError):
            GEXF.validate(str(path))


def attributes(element):
    return {v.get("for"): v.get("value") for v in element.findall(f"{NS}attvalues/{NS}attvalue")}


def test_gexf_holds_the_whole_sub_graph(tmp_path):
    subgraph = nasty(random_subgraph(7, n=9, n_layers=2, n_heads=12, k=400, ties=True))
    root = ET.parse(export_gephi(subgraph, tmp_path / "g.gexf")).getroot()
    frame, nodes = subgraph.edge_frame(), subgraph.node_frame()
    for element, row in zip(root.iter(f"{NS}node"), nodes.to_dict("records"), strict=True):
        held = attributes(element)
        assert element.get("id") == f"{row['level']}:{row['position']}"
        assert element.get("label") == printable(row["name"])
        assert held["token"] == printable(row["token"])
        assert held["special"] == str(row["special"]).lower()
        assert held["site"] == row["site"]
        assert int(held["level"]) == row["level"]
        assert ("layer" in held) == (row["level"] > 0)
        assert float(element.get("start")) == row["rank"]
        place = element.find(f"{VIZ}position")
        assert (float(place.get("x")), float(place.get("y"))) == (row["position"], row["level"])
    kinds = {"residual": "RESIDUAL", "mlp": "MLP"}
    for element, row in zip(root.iter(f"{NS}edge"), frame.to_dict("records"), strict=True):
        held = attributes(element)
        expected = kinds.get(row["kind"]) or f"ATTENTION.h{row['head']:02d}"
        assert element.get("kind") == expected
        assert element.get("source") == f"{row['source_level']}:{row['source_position']}"
        assert element.get("target") == f"{row['target_level']}:{row['target_position']}"
        assert float(element.get("start")) == row["rank"] == int(held["rank"])
        assert np.float32(held["score"]) == row["score"]
        assert float(element.get("weight")) == pytest.approx(max(row["score"], 1e-6))
        assert held["component"] == row["component"]
        assert int(held["layer"]) == row["layer"]
    assert (frame["score"] == 0).any(), "the test needs an edge of score 0"


def test_collapsed_edges_sum_their_scores(tmp_path):
    subgraph = random_subgraph(3, n=4, k=40)
    root = ET.parse(export_gephi(subgraph, tmp_path / "g.gexf", collapse=True)).getroot()
    ends = ["source_level", "source_position", "target_level", "target_position"]
    groups = dict(list(subgraph.edge_frame().groupby(ends)))
    edges = list(root.iter(f"{NS}edge"))
    assert len(edges) == len(groups) < len(subgraph)
    for element in edges:
        key = tuple(int(x) for end in ("source", "target") for x in element.get(end).split(":"))
        rows, held = groups[key], attributes(element)
        assert element.get("kind") == "MERGED"
        assert float(held["score"]) == pytest.approx(rows["score"].sum())
        assert int(held["rank"]) == rows["rank"].min() == float(element.get("start"))
        assert int(held["n_edges"]) == len(rows)
        assert held["component"].split() == rows["component"].tolist()


def test_networkx_reads_it_back(tmp_path):
    subgraph = nasty(random_subgraph(11, n=9, k=120))
    graph = nx.read_gexf(export_gephi(subgraph, tmp_path / "g.gexf"), version="1.3")
    assert graph.is_directed()
    assert graph.is_multigraph()
    assert graph.number_of_edges() == len(subgraph)
    assert graph.number_of_nodes() == len(subgraph.node_ids)
    edges = {data["id"]: (s, t, data) for s, t, data in graph.edges(data=True)}
    for row in subgraph.edge_frame().to_dict("records"):
        source, target, data = edges[f"e{row['rank']}"]
        assert source == f"{row['source_level']}:{row['source_position']}"
        assert target == f"{row['target_level']}:{row['target_position']}"
        assert data["component"] == row["component"]
        assert data["score"] == pytest.approx(row["score"])


def test_no_control_character_gets_through():
    text = printable("".join(map(chr, range(0x20))) + "\x7f\ufffe\uffff\ud800 ok")
    ET.fromstring(f"<a>{text.replace('&', '').replace('<U', '[U')}</a>")
    assert "␀" in text
    assert "<U+D800>" in text
    assert text.endswith(" ok")
    assert printable("\t\n\r é🙂") == "\t\n\r é🙂"


def test_graphml_round_trip(tmp_path):
    subgraph = nasty(random_subgraph(5, n=9, k=150, ties=True))
    graph = nx.read_graphml(export_graphml(subgraph, tmp_path / "g.graphml"))
    expected = subgraph.to_networkx()
    assert graph.number_of_edges() == len(subgraph)
    for (level, position), data in expected.nodes(data=True):
        held = graph.nodes[f"{level}:{position}"]
        # a line end inside an element is normalised by every XML reader
        assert held["token"] == printable(data["token"]).replace("\r", "\n")
        assert held["special"] is bool(data["special"])
        assert ("layer" in held) == (level > 0)
    rows = {data["rank"]: (s, t, data) for s, t, data in graph.edges(data=True)}
    for source, target, data in expected.edges(data=True):
        s, t, held = rows[data["rank"]]
        assert (s, t) == (f"{source[0]}:{source[1]}", f"{target[0]}:{target[1]}")
        for name in ("kind", "layer", "head", "component"):
            assert held[name] == data[name]
        assert held["score"] == pytest.approx(data["score"])
        assert held["weight"] > 0


def test_a_failed_export_leaves_the_old_file(tmp_path):
    path = tmp_path / "g.gexf"
    path.write_text("old")
    broken = replace(random_subgraph(1, k=9), tokens=[None] * 4)  # type: ignore[list-item]
    with pytest.raises((AttributeError, TypeError)):
        export_gephi(broken, path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["g.gexf"]
    with pytest.raises(OptionError, match="cannot write"):
        export_graphml(random_subgraph(1, k=9), path / "inside.graphml")


def test_gephi_itself_reads_it(tmp_path):
    if not GEPHI_CHECK.exists():
        absent("Gephi's importer is not at hand (../shared/gephi/gephi-check)")
    subgraph = synthetic_trace(1, n=9, model=model_info(3, 12)).subgraph("k:400")
    for collapse in (False, True):
        path = export_gephi(nasty(subgraph), tmp_path / "g.gexf", collapse)
        command = [str(GEPHI_CHECK), str(path), "t=0", "t=99", "t=399"]
        seen = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        assert seen["verified"] is True
        assert [i for i in seen["issues"] if not i.startswith("INFO")] == []
        assert seen["directed"] is True
        assert seen["dynamic"] is True
        assert seen["nodes"] == len(subgraph.node_ids)
        assert seen["weights"][0] > 0
        if collapse:
            links = len(set(zip(subgraph.source_node, subgraph.target_node, strict=True)))
            assert seen["edge_types"] == {"MERGED": links}
            continue
        assert seen["edges"] == 400
        assert seen["edges_at"] == {"0.0": 1, "99.0": 100, "399.0": 400}
        assert seen["time"] == ["0.0", "399.0"]
        attention = [t for t in seen["edge_types"] if t.startswith("ATTENTION.h")]
        assert sorted(attention) == [f"ATTENTION.h{h:02d}" for h in range(12)]
        counts = np.bincount(subgraph.edges.kind, minlength=3)
        assert seen["edge_types"]["RESIDUAL"] == counts[schema.RESIDUAL]
        assert seen["edge_types"]["MLP"] == counts[schema.MLP]
        assert seen["node_columns"]["special"] == "Boolean"
        assert seen["edge_columns"]["score"] == "Double"
        assert seen["edge_columns"]["rank"] == "Integer"
