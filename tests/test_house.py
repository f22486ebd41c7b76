"""The house itself: imports point down, the public names, what ships, what is written down."""

import ast
import inspect
import os
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

import graphtrace as gt

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "graphtrace"

# Lower rooms first. A module imports from its own room or from those before it.
ROOMS = [
    {
        "errors",
        "schema",
        "progress",
        "cypher_files",
        "files",
        "read_only",
        "read_ahead",
        "keywords",
        "json_value",
    },
    {"layout", "sizes", "memory", "precision", "component_names"},
    {"subgraph", "curve"},
    {"edge_sets"},
    {"traces", "selection", "conditions"},
    {
        "corpus",
        "corpus_formats",
        "designs",
        "positions",
        "families",
        "tokens",
        "path_text",
        "query_scope",
        "catalogue",
        "browser",
        "archive_files",
        "archive_parquet",
        "archive_frame",
        "archive_columns",
        "archive_index",
    },
    {"archive", "archive_verify", "archive_write", "archive_pack", "archive_merge"},
    {"models", "stores", "ingestion", "analysis"},
    {"hub", "model_files", "loading", "tokenizing", "targets"},
    {"masked_attention"},
    {
        "forward",
        "incoming",
        "model_facts",
        "plots",
        "plots_contrast",
        "plots_correlates",
        "plots_curves",
        "export",
        "neo4j_import",
        "report_page",
    },
    {"report_parts"},
    {"study_report", "report_sections", "report_curves", "report_claims"},
    {"edge_weights"},
    {"gradients"},
    {"scoring"},
    {"reference_means", "masks", "distributions", "paired"},
    {"plan"},
    {"planned"},
    {
        "edges",
        "ranking",
        "intervals",
        "trace_ends",
        "nested",
        "search",
        "score_statistics",
        "evaluation",
    },
    {"options"},
    {"pairing"},
    {"selecting"},
    {"stages"},
    {"pipeline"},
    {"tracing", "set_evaluation"},
    {"study", "forecasting", "measuring"},
    {"demo"},
    {"cli", "__main__"},
]
MODEL_SIDE = {
    "precision",
    "options",
    "stages",
    "pipeline",
    "forecasting",
    "memory",
    "models",
    "hub",
    "model_files",
    "loading",
    "tokenizing",
    "forward",
    "masked_attention",
    "incoming",
    "model_facts",
    "edge_weights",
    "gradients",
    "targets",
    "reference_means",
    "masks",
    "distributions",
    "plan",
    "paired",
    "pairing",
    "selecting",
    "set_evaluation",
    "planned",
    "scoring",
    "edges",
    "evaluation",
    "tracing",
    "study",
    "measuring",
    "ranking",
    "intervals",
    "trace_ends",
    "nested",
    "search",
    "score_statistics",
    "families",
    "tokens",
    "cli",
    "demo",
}


def modules():
    return sorted(p for p in PACKAGE.rglob("*.py") if "__pycache__" not in p.parts)


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path, package):
    """Names of the modules of `package` that a file imports, at any depth of the code."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
            if node.module == package:
                names = [f"{package}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == package)


def test_imports_point_down():
    level = {name: i for i, room in enumerate(ROOMS) for name in room}
    for path in modules():
        here = room_of(path)
        if here == "__init__":
            continue
        assert here in level, f"{path.name} has no room in ROOMS"
        for name in imported(path, "graphtrace"):
            parts = name.split(".")
            if len(parts) == 1 or parts[1] == "__version__" or parts[1] == here:
                continue
            # `gt.trace`-like names of the package itself resolve to their modules.
            target = parts[1] if parts[1] in level else gt._HOMES[parts[1]].split(".")[1]
            assert level[target] <= level[here], f"{here} must not import {target}"


def test_the_store_and_analysis_side_never_imports_torch():
    for path in modules():
        if room_of(path) in MODEL_SIDE:
            continue
        for package in ("torch", "transformers", "tokenizers", "safetensors"):
            assert not list(imported(path, package)), f"{path} imports {package}"


def test_everything_but_the_models_works_with_torch_absent():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "import graphtrace as gt\n"
        "from graphtrace.errors import MissingPackageError\n"
        "[getattr(gt, n) for n in gt.__all__ if gt._HOMES[n].split('.')[1] not in "
        "('loading', 'tracing', 'study', 'forecasting', 'set_evaluation')]\n"
        "try:\n    gt.load_model\nexcept MissingPackageError as e:\n    print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "graphtrace-llm[models]" in done.stdout, done.stderr


def test_public_names():
    for path in modules():
        name = ".".join(("graphtrace", *path.relative_to(PACKAGE).with_suffix("").parts))
        if not name.endswith(("__init__", "__main__")):
            import_module(name)
    assert gt.__all__ == sorted(gt.__all__)
    assert set(gt.__all__) == set(gt._HOMES)
    for name in gt.__all__:
        value = getattr(gt, name)
        assert not isinstance(value, type(gt)), f"gt.{name} is a module"
        assert value.__doc__, f"gt.{name} has no docstring"
    with pytest.raises(AttributeError, match="no_such_name"):
        gt.no_such_name  # noqa: B018


def test_public_functions_and_classes_have_docstrings():
    bare = []
    for path in modules():
        tree = ast.parse(path.read_text())
        public = [node for node in tree.body if getattr(node, "name", "_")[0] != "_"]
        for node in [*public]:
            if isinstance(node, ast.ClassDef):
                public += [child for child in node.body if getattr(child, "name", "_")[0] != "_"]
        bare += [f"{path.name}: {node.name}" for node in public if not ast.get_docstring(node)]
    assert not bare, bare


def test_no_pickle_no_remote_code():
    for path in modules():
        text = path.read_text()
        for word in ("import pickle", "torch.load(", "trust_remote_code=True", "shell=True"):
            assert word not in text, f"{word} in {path.name}"


def test_modules_stay_small():
    long = {p.name: n for p in modules() if (n := len(p.read_text().splitlines())) > 420}
    assert not long


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--quiet", "-w", str(out), str(ROOT)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_what_the_checkout_holds(wheel):
    tracked = subprocess.run(
        ["git", "ls-files", "graphtrace", "ingest", "queries"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.split("\n")
    expected = set()
    for name in filter(None, tracked):
        for folder in ("ingest", "queries"):
            if name.startswith(f"{folder}/"):
                name = f"graphtrace/_{name}"
        expected.add(name)
    assert len(expected) > 30
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert names == expected


def test_the_wheel_reads_its_cypher_where_the_checkout_is_not(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import graphtrace, pathlib\n"
        "from graphtrace.catalogue import catalogue\n"
        "assert pathlib.Path(graphtrace.__file__).is_relative_to(pathlib.Path('.').resolve())\n"
        "print(len(catalogue()))"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": "."}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10


def test_help_does_not_import_what_is_slow():
    code = (
        "import sys, graphtrace.cli.commands\n"
        "slow = {'torch', 'transformers', 'pandas', 'numpy', 'pyarrow', 'numba', 'igraph', "
        "'ladybug', 'matplotlib', 'scipy', 'networkx'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_line_has_the_librarys_defaults():
    import typer.main

    from graphtrace.cli.commands import app
    from graphtrace.options import DEFAULTS

    command = typer.main.get_command(app).commands["extract"]
    given = {parameter.name: parameter.default for parameter in command.params}
    library = inspect.signature(gt.extract).parameters
    assert (given["scorer"], given["seed"]) == (DEFAULTS.scorer, DEFAULTS.seed)
    evaluation = DEFAULTS.evaluation
    assert (given["search"], given["mode"]) == (DEFAULTS.search, evaluation.mode)
    assert (given["ablation"], given["ablate"]) == (
        evaluation.ablation,
        ",".join(evaluation.ablate),
    )
    for name in ("scorer", "seed", "keep", "archive", "retry_failed", "search", "mode", "ablation"):
        assert str(given[name]) == str(library[name].default), name
    for name in ("eval_dtype", "means", "bos", "chat", "system"):
        assert given[name] == library[name].default, name


def test_the_families_are_named_where_people_look():
    from graphtrace.families import FAMILIES

    names = sorted(family.name for family in FAMILIES.values())
    listed = ", ".join(names).replace("gemma3", "gemma3 (text)")
    for page in (ROOT / "README.md", ROOT / "docs" / "families.md"):
        assert listed in " ".join(page.read_text().split()), page.name


CLI_PAGE = ROOT / "docs" / "cli.md"


def test_the_page_of_commands_is_the_command_line():
    """Write it again with GRAPHTRACE_WRITE=1."""
    command = [sys.executable, "-m", "typer", "graphtrace.cli.commands", "utils", "docs"]
    done = subprocess.run([*command, "--name", "graphtrace"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = "\n".join(line.rstrip() for line in done.stdout.strip().splitlines()) + "\n"
    if os.environ.get("GRAPHTRACE_WRITE"):
        CLI_PAGE.write_text(page)
    assert CLI_PAGE.read_text() == page


def test_every_command_and_option_has_a_help_text():
    import typer.main

    from graphtrace.cli.commands import app

    def walk(command, path):
        if hasattr(command, "commands"):
            for name, child in command.commands.items():
                yield from walk(child, (*path, name))
        else:
            yield " ".join(path), command

    found = dict(walk(typer.main.get_command(app), ()))
    assert len(found) > 12
    for name, command in found.items():
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{parameter.name} of {name}"
