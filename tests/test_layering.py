"""The shape of the code base: who may import whom, and how long a file or a function may be."""

import ast
import pathlib

import pytest

import jaxhybrid

ROOT = pathlib.Path(jaxhybrid.__file__).parent

# From the ground up; a name is a module or a package with all its modules. A module imports from lower layers, and from
# its own package if it is one.
LAYERS = (
    ("errors", "types"),
    ("ops",),
    ("networks", "rollout", "guard", "replay", "sharding", "trajectories", "trials", "envs"),
    ("losses", "policies", "rollout_values", "segments", "context_layers"),
    ("estimators", "model_fit", "multi_step_model", "transition_models", "abstract_networks", "context_networks")
    + ("integer_dynamics", "gradient_readers"),
    ("dynamics", "cell_encoder", "latent_networks"),
    ("planning", "trust_region"),
    ("systems",),
    ("runtime",),
)

# A simulator breaks with its dependencies; the rest of the library must not.
SIMULATORS = {
    "brax": {"envs.brax", "envs.brax_frames"},
    "mujoco": {"envs.gymnasium", "envs.gymnasium_frames"},
    "gymnasium": {"envs.gymnasium", "envs.gymnasium_frames", "envs.vector"},
}

MAX_FILE, MAX_FUNCTION = 400, 60
LONG: dict[str, str] = {}  # name of a module -> why it may be longer


def modules():
    """Name relative to the package, and syntax tree, of every module."""
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield name, ast.parse(path.read_text())


MODULES = dict(modules())


def layer(name):
    for height, members in enumerate(LAYERS):
        if name.split(".")[0] in members:
            return height
    raise AssertionError(f"jaxhybrid.{name} has no layer: add it to the table, above everything that it imports.")


def imported(tree):
    """Full names of what a module imports, at its top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            # `from jaxhybrid import x` imports the module x; `from jaxhybrid.x import y` may import x.y.
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dependencies(name):
    """Modules of this package that a module imports."""
    full = {target.removeprefix("jaxhybrid.") for target in imported(MODULES[name]) if target.startswith("jaxhybrid.")}
    found = {target for target in full if target in MODULES}
    # The package of a module that is imported is not imported for itself.
    return {target for target in found if not any(other.startswith(target + ".") for other in found)} - {name}


def test_imports_are_seen():
    found = dependencies("systems.maac_updates")
    assert {"dynamics", "networks", "losses.pathwise", "systems.maac_config", "types"} <= found
    assert "losses" not in found


@pytest.mark.parametrize("name", [name for name in MODULES if name not in ("__init__", "__main__")])
def test_a_module_imports_from_below(name):
    for target in dependencies(name):
        same_package = target.split(".")[0] == name.split(".")[0]
        assert same_package or layer(target) < layer(name), f"jaxhybrid.{name} imports jaxhybrid.{target} from above"


def test_no_module_imports_itself_in_a_circle():
    seen, path = set(), []

    def visit(name):
        assert name not in path, f"circle: {' -> '.join([*path[path.index(name) :], name])}"
        if name in seen:
            return
        path.append(name)
        for target in dependencies(name):
            visit(target)
        path.pop()
        seen.add(name)

    for name in MODULES:
        visit(name)


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_a_simulator_is_imported_in_its_adapter_only(simulator):
    importers = {name for name, tree in MODULES.items() if any(t.split(".")[0] == simulator for t in imported(tree))}
    assert importers <= SIMULATORS[simulator]


def code_lines(node):
    """Lines of a function without its docstring, which is a contract and no code."""
    lines = node.end_lineno - node.lineno + 1
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        lines -= first.end_lineno - first.lineno + 1
    return lines


def long_parts(name):
    tree = MODULES[name]
    path = ROOT / (name.replace(".", "/") + ".py")
    length = len((path if path.exists() else ROOT / name.replace(".", "/") / "__init__.py").read_text().splitlines())
    if length > MAX_FILE:
        yield f"the file has {length} lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and code_lines(node) > MAX_FUNCTION:
            yield f"{node.name} has {code_lines(node)} lines"


@pytest.mark.parametrize("name", [name for name in MODULES if name not in LONG and name != "__init__"])
def test_files_and_functions_are_short(name):
    assert not list(long_parts(name)), "split it, or give the reason in LONG"


def test_exceptions_are_still_needed():
    for name in LONG:
        assert list(long_parts(name)), f"{name} is short enough: take it off the list"
