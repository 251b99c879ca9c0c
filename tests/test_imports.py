"""Imports run one way: between packages, between the folders of a package, and between files.

An import inside a function or under TYPE_CHECKING counts like any other: a circle that hides there is a circle.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "protos": set(),
    "pipeline": {"protos"},
    "serving": {"protos", "pipeline"},
    "transfer": {"protos", "pipeline"},
    "benchmarks": {"protos", "pipeline", "serving", "transfer"},
}
"""What a package imports beside itself."""
SEES_TRANSFER = ("serving/cli/", "serving/processes/worker.py")
BY_NAME = {("serving/cli/main.py", "benchmarks")}
"""`baton bench` is there where the checkout is; loaded by its name, and by nothing else of serving."""

FOLDERS = {
    "pipeline": (
        *("redis", "bundle", "embedding", "embedding/device", "embedding/segment", "embedding/redis"),
        *(
            "embedding/hierarchy",
            "model",
            "engine",
            "traffic/record",
            "traffic",
            "traffic/export",
            "traffic/lanes",
            "traffic/local",
            "traffic/redis",
            "stages",
        ),
    ),
    "serving": (
        *(
            "config",
            "wire",
            "runtime",
            "supervisor",
            "client",
            "rollout/sums",
            "rollout/status",
            "rollout",
            "rollout/simulation",
            "security",
            "state",
            "state/redis",
            "telemetry",
            "lane",
        ),
        *(
            "wiring",
            "tiers",
            "health",
            "admin",
            "services",
            "http",
            "http/console",
            "notify",
            "control",
            "processes",
            "cli",
        ),
    ),
    "transfer": (
        *(
            "model_zoo",
            "data",
            "click_model",
            "quality",
            "bundles",
            "bundles/importing/tables",
            "bundles/importing",
            "bundles/remote",
            "offline",
            "online",
            "teachers",
            "experiment",
        ),
    ),
}
"""Folders of a package, lowest first: a folder imports folders before it alone. A file at a package's root stands for
itself: it may import any folder that does not come back to it."""
MOST_FILES = 15
LARGER = {
    "pipeline": 26,
    "serving/wiring": 18,
    "serving/admin": 20,
    "serving/rollout": 26,
    "serving/http/console": 22,
    "serving/cli": 46,
}
"""Folders of many files of one kind: public words, backends, verbs, the rules of a rollout, panels, commands."""

TRANSPORTS = {"grpc", "fastapi", "starlette", "uvicorn", "ray", "uvloop", "torch"}
WITH_TORCH = {"pipeline/embedding/device/torch_sets.py", "pipeline/embedding/device/torch_cache.py"}
"""The device tier of a GPU, imported when one is opened, so that a process without it has no torch."""
WITH_RAY = {"serving/ray_app.py", "transfer/teachers/ray_pool.py", "transfer/online/ray_trainers.py"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    name_of(path): path.relative_to(ROOT)
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if not path.name.endswith(("_pb2.py", "_pb2_grpc.py"))
}


def imported(path: Path) -> set[str]:
    """Full names of what a file imports, wherever in it: `a.b` of `from a import b` where that is a file, else `a`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}: a relative import"
            names = {f"{node.module}.{alias.name}": node.module for alias in node.names}
            found.update(name if name in FILES else module for name, module in names.items())
    return found


IMPORTED = {name: imported(path) for name, path in FILES.items()}
GRAPH = {name: (found & FILES.keys()) - {name} for name, found in IMPORTED.items()}


def folder_of(name: str) -> str:
    """A file's folder within its package; the file itself where that is the package's root."""
    path = FILES[name]
    folder = "/".join(path.parts[1:-1])
    return folder or path.name


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert not circle(GRAPH)


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_no_folders_import_each_other_in_a_circle(package: str) -> None:
    graph: dict[str, set[str]] = {}
    for name, others in GRAPH.items():
        if name.split(".")[0] == package:
            mine = graph.setdefault(folder_of(name), set())
            mine |= {folder_of(other) for other in others if other.split(".")[0] == package} - {folder_of(name)}
    assert not circle(graph)


@pytest.mark.parametrize("package", sorted(FOLDERS))
def test_a_folder_imports_only_folders_before_it(package: str) -> None:
    order = FOLDERS[package]
    here = {"/".join(path.parts[1:-1]) for path in FILES.values() if path.parts[0] == package} - {""}
    assert here == set(order), "folders and this test's table differ"
    wrong = [
        f"{FILES[name]} imports {FILES[other]}"
        for name, others in GRAPH.items()
        for other in others
        if name.split(".")[0] == other.split(".")[0] == package
        and folder_of(name) in order
        and folder_of(other) in order
        and order.index(folder_of(other)) > order.index(folder_of(name))
    ]
    assert not wrong


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_packages_import_only_what_lies_below_them(package: str) -> None:
    wrong = []
    for name, found in IMPORTED.items():
        path = FILES[name].as_posix()
        if name.split(".")[0] != package:
            continue
        allowed = PACKAGES[package] | {package} | ({"transfer"} if path.startswith(SEES_TRANSFER) else set())
        others = {other.split(".")[0] for other in found} & PACKAGES.keys() - allowed
        wrong += [f"{path} imports {other}" for other in sorted(others)]
    assert not wrong


@pytest.mark.parametrize("package", ["pipeline", "serving", "transfer"])
def test_a_package_is_loaded_by_name_where_that_is_said(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module"
            ):
                named = node.args[0]
                if isinstance(named, ast.Constant) and isinstance(named.value, str):
                    top = named.value.split(".")[0]
                    assert top not in PACKAGES or (path.relative_to(ROOT).as_posix(), top) in BY_NAME


RUNS_CODE = {
    *("import_module", "__import__", "find_spec", "spec_from_file_location", "module_from_spec", "exec_module"),
    *("run_path", "run_module", "eval", "exec", "compile", "execfile", "load_source", "entry_points"),
}
"""Calls that make code of a name or a text. (`x.eval()` and `re.compile()` are others' methods of the same names.)"""
UNPICKLES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "pydoc",
    "imp",
    "runpy",
}
"""Modules that make objects, and so run code, of data."""
BY_NAME_OF = {
    "transfer/model_zoo/registry.py": {"import_module"},  # architectures of the configuration and the command line
    "serving/lane/stages.py": {"import_module"},  # stages of the configuration
    "serving/cli/main.py": {"import_module"},  # benchmarks, a constant
    "serving/cli/check.py": {"find_spec"},  # whether a package of a fixed list is installed
    "serving/cli/run.py": {"find_spec"},  # Ray
}
"""Files that load code by name, and by what. None takes the name from a bundle, a request, a state or a file in home."""
STARTS_PYTHON = "pipeline/children.py"


def _calls(path: Path) -> Iterable[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Call):
            own = isinstance(node.func, ast.Name)
            name = node.func.id if own else getattr(node.func, "attr", "")
            if own or name not in ("eval", "compile", "exec"):
                yield name, node


def _served() -> list[Path]:
    return [path for path in FILES.values() if path.parts[0] in ("pipeline", "serving", "transfer")]


def test_code_is_loaded_by_name_in_the_files_that_say_so_alone() -> None:
    found: dict[str, set[str]] = {}
    for path in _served():
        used = {name for name, _ in _calls(path)} & RUNS_CODE
        if used:
            found[path.as_posix()] = used
    assert found == BY_NAME_OF


WITH_PICKLES = "transfer/bundles/importing/trusted.py"
"""Loads a model's pickle for `baton bundle import --trust-pickle`; only the converters of that command import it."""


def test_nothing_is_unpickled() -> None:
    trusted = [name for name, others in IMPORTED.items() if "transfer.bundles.importing.trusted" in others]
    assert trusted == ["transfer.bundles.importing.converting"]
    for name, others in IMPORTED.items():
        if FILES[name].parts[0] != "benchmarks" and FILES[name].as_posix() != WITH_PICKLES:
            assert not {other.split(".")[0] for other in others} & UNPICKLES, name
    for path in _served():
        for name, call in _calls(path) if path.as_posix() != WITH_PICKLES else ():
            module = ast.unparse(call.func).rpartition(".")[0]
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if (module, name) in {("np", "load"), ("numpy", "load")}:
                assert given.get("allow_pickle") == "False", path
            assert (module, name) not in {("torch", "load"), ("torch.hub", "load"), ("torch.jit", "load")}, path
            if module == "yaml" and "load" in name:
                assert name == "safe_load" or path.as_posix() == "pipeline/documents.py", path


def test_python_is_started_without_the_working_directory_on_its_path() -> None:
    wrong = []
    for path in _served():
        text = (ROOT / path).read_text()
        if path.as_posix() != STARTS_PYTHON and any(
            w in text for w in ("sys.executable", "get_context(", "set_start_method")
        ):
            wrong.append(path.as_posix())
    assert not wrong


def test_the_configuration_becomes_objects_in_wiring_for_processes_and_commands_alone() -> None:
    allowed = ("serving/wiring/", "serving/processes/", "serving/cli/", "serving/ray_app.py")
    wrong = []
    for path in sorted((ROOT / "serving").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("serving.wiring."):
                opened = [alias.name for alias in node.names if alias.name.startswith("open_")]
                if opened and not path.relative_to(ROOT).as_posix().startswith(allowed):
                    wrong.append(f"{path.relative_to(ROOT)} imports {', '.join(opened)}")
    assert not wrong


def test_pipeline_knows_no_transport() -> None:
    for name, found in IMPORTED.items():
        path = FILES[name].as_posix()
        if path.startswith("pipeline/"):
            refused = {other.split(".")[0] for other in found} & TRANSPORTS
            assert refused <= ({"torch"} if path in WITH_TORCH else set()), f"{path} imports {refused}"


def test_ray_is_imported_where_it_is_asked_for_alone() -> None:
    found = {FILES[name].as_posix() for name, others in IMPORTED.items() if "ray" in {o.split(".")[0] for o in others}}
    assert "serving/ray_app.py" in found
    assert found <= WITH_RAY


def test_a_folder_holds_about_fifteen_files() -> None:
    count: dict[str, int] = {}
    for path in FILES.values():
        if path.parts[0] in FOLDERS and path.name != "__init__.py":
            count[path.parent.as_posix()] = count.get(path.parent.as_posix(), 0) + 1
    assert {folder: files for folder, files in count.items() if files > LARGER.get(folder, MOST_FILES)} == {}
