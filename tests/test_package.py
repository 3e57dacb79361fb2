"""The package from outside: its names, its wheel, its manifest, its dependencies."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import napari_fmseg

ROOT = Path(__file__).parents[1]
NAMES_ON_PYPI = {
    "PIL": "pillow",
    "SimpleITK": "simpleitk",
    "cc3d": "connected-components-3d",
    "nnInteractive": "nninteractive-client",
    "skimage": "scikit-image",
}
HEAVY = ("torch", "monai", "napari", "qtpy", "PyQt6", "PySide6", "magicgui", "superqt", "SimpleITK", "scipy", "skimage")
LOOK = """
import json, sys
from importlib.metadata import entry_points
from pathlib import Path
from npe2 import PluginManager
import napari_fmseg
from napari_fmseg.core.package import data_folder
manager = PluginManager()
manager.discover()
manifest = manager.get_manifest("napari-fmseg")
manager.activate("napari-fmseg")
layers = manifest.contributions.sample_data[0].open(_registry=manager.commands)
files = sorted(path.name for path in data_folder("resources").rglob("*.toml"))
weights = sorted(path.name for path in data_folder("weights").rglob("*"))
print(json.dumps({
    "file": napari_fmseg.__file__, "display_name": manifest.display_name, "version": manifest.package_version,
    "layers": [kind for _, _, kind in layers], "resources": files, "weights": weights,
    "command": [e.value for e in entry_points(group="console_scripts", name="fmseg")],
    "qt": [name for name in ("PyQt6", "PySide6", "qtpy", "napari") if name in sys.modules],
}))
"""


def run(*words: object, **options) -> str:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the project, so that a build leaves nothing here; with a model that must not be passed on."""
    copy = tmp_path_factory.mktemp("checkout") / "napari-fmseg"
    leave = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "demo-output", "runs", "__pycache__", "tests")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=leave)
    research = copy / "weights" / "research"
    research.mkdir(exist_ok=True)
    (research / "restricted.safetensors").write_bytes(b"0")
    (research / "restricted.toml").write_text("")
    return copy


def look(tmp_path: Path, python: object, **environment: str) -> dict:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", **environment}
    return json.loads(run(python, "-c", LOOK, cwd=tmp_path, env=environment).splitlines()[-1])


def check(found: dict, checkout: Path) -> None:
    assert found["display_name"] == "fmseg"
    assert found["version"] == napari_fmseg.__version__
    assert found["layers"] == ["image", "labels"]
    assert found["command"] == ["napari_fmseg.cli.main:main"]
    assert found["qt"] == []
    assert set(found["resources"]) >= {path.name for path in (checkout / "resources").rglob("*.toml")}
    shipped = {path.name for path in (checkout / "weights").glob("*.safetensors")}
    assert set(found["weights"]) >= {"README.md", *shipped}


def test_wheel_holds_manifest_and_resources_and_no_restricted_weights(checkout: Path, tmp_path: Path):
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        checkout,
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "-w",
        tmp_path,
    )
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "installed"
    run(sys.executable, "-m", "pip", "install", wheel, "--no-deps", "--no-index", "--target", target)
    found = look(tmp_path, sys.executable, PYTHONPATH=str(target))
    assert found["file"].startswith(str(target))
    check(found, checkout)
    assert not [name for name in found["weights"] if name.startswith(("restricted", "research"))]
    assert {path.parent for path in target.rglob("*.py")} >= {
        target / path.parent.relative_to(checkout) for path in (checkout / "napari_fmseg").rglob("*.py")
    }, "a package is missing in setup.cfg"
    assert (target / "napari_fmseg" / "py.typed").is_file()
    assert not (target / "napari_fmseg" / "napari.yaml").is_symlink()


def test_editable_install_is_found_by_npe2(checkout: Path, tmp_path: Path):
    venv.create(tmp_path / "env", with_pip=False)
    folder = "Scripts" if os.name == "nt" else "bin"
    python = tmp_path / "env" / folder / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "shared.pth").write_text(sysconfig.get_path("purelib"))  # the packages of the environment that tests
    run(sys.executable, "-m", "pip", "--python", python, "install", "--editable", checkout, "--no-deps", "--no-index",
        "--no-build-isolation")  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    found = json.loads(run(python, "-W", "ignore", "-c", LOOK, cwd=tmp_path, env=environment).splitlines()[-1])
    assert found["file"].startswith(str(checkout))
    check(found, checkout)


def test_public_names_are_there_and_load_their_room_at_first_use():
    assert set(napari_fmseg.__all__) <= set(dir(napari_fmseg))
    for name in napari_fmseg.__all__:
        assert getattr(napari_fmseg, name) is not None, name
    with pytest.raises(AttributeError, match="no attribute 'segmnet'"):
        _ = napari_fmseg.segmnet


@pytest.mark.parametrize(
    "code",
    [
        "import napari_fmseg",
        "import napari_fmseg as n; n.Volume, n.errors, n.phantom_ct(0, spacing=(24.0, 24.0, 24.0))",
        "import napari_fmseg as n; n.list_models()",
        "import napari_fmseg._napari.sample_data",
    ],
)
def test_import_and_light_use_load_neither_torch_nor_napari_nor_qt(code: str):
    ask = f"{code}\nimport sys; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    assert run(sys.executable, "-c", ask, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}).strip() == ""


def declared() -> dict[str, set[str]]:
    """Distribution names in setup.cfg: of the base and of each extra."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    groups = {"base": config["options"]["install_requires"], **config["options.extras_require"]}
    return {
        group: {re.split(r"[\[<>=!~ ;]", line, maxsplit=1)[0].lower() for line in text.split("\n") if line.strip()}
        for group, text in groups.items()
    }


def imported(folder: Path) -> set[str]:
    """Distribution names that the modules of `folder` import, as far as they are not Python's own."""
    roots: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                roots |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                roots.add(node.module.split(".")[0])
    foreign = roots - set(sys.stdlib_module_names) - {"napari_fmseg"}
    return {NAMES_ON_PYPI.get(name, name).lower().replace("_", "-") for name in foreign}


def test_every_import_is_declared_and_every_base_dependency_is_used():
    groups = declared()
    used = imported(ROOT / "napari_fmseg")
    assert used <= set.union(*groups.values())
    assert groups["base"] <= used


def test_base_brings_no_qt_binding():
    base = declared()["base"]
    assert not {name for name in base if name in ("napari", "qtpy") or name.startswith(("pyqt", "pyside"))}


def test_constraints_pin_torch_and_whatever_is_declared():
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    assert set.union(*declared().values()) - {"napari-fmseg"} <= pinned
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text()


def test_manifest_names_commands_that_exist():
    npe2 = pytest.importorskip("npe2")
    manifest = npe2.PluginManifest.from_file(ROOT / "napari.yaml")
    manifest.validate_imports()


def test_sample_lies_in_the_viewer_with_image_and_labels_in_one_place_in_mm():
    components = pytest.importorskip("napari.components")
    layers = pytest.importorskip("napari.layers")
    from napari_fmseg._napari.sample_data import phantom_sample

    viewer = components.ViewerModel()
    for data in phantom_sample():
        viewer.add_layer(layers.Layer.create(*data))
    image, labels = viewer.layers
    assert image.data.shape == labels.data.shape
    assert (image.extent.world == labels.extent.world).all()
    assert [str(unit) for unit in image.units] == ["millimeter"] * 3
    assert labels.features["name"].tolist() == ["background", "liver", "kidneys", "spleen", "pancreas", "tumour"]
    assert labels.get_color(9)[3] > 0  # a label that nobody foresaw can be seen when it is painted


def test_readme_has_the_table_of_the_shipped_models():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    done = run(sys.executable, ROOT / "scripts" / "models_table.py", env={**os.environ, "PYTHONPATH": str(ROOT)})
    between = readme.split("<!-- models: start -->")[1].split("<!-- models: end -->")[0]
    assert between.strip() == done.strip(), "run scripts/models_table.py --write"


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_links_of_the_documentation_lead_somewhere(page: str):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text(encoding="utf-8")):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target


def test_no_module_hides_what_its_package_gives_under_the_same_name() -> None:
    code = """
import importlib, pkgutil, types
import napari_fmseg
packages = [napari_fmseg.__name__]
for found in pkgutil.walk_packages(napari_fmseg.__path__, "napari_fmseg."):
    if found.ispkg and "._napari" not in found.name:
        packages.append(found.name)
for package in packages:
    names = getattr(importlib.import_module(package), "__all__", ())
    for name in names:
        given = {}
        exec(f"from {package} import {name}", given)  # as a user writes it: the lazy ones, too
        if isinstance(given[name], types.ModuleType) and (package, name) != ("napari_fmseg", "errors"):
            print(package, name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr[-2000:]
