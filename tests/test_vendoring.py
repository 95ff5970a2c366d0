"""The layers by themselves: their folder, copied into another project under another name, works there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

PROGRAM = """
import copy, pickle, sys, torch
from vendored.bayes import BBBConv2d, BBBLinear, FlattenLayer, ModuleWrapper, kl_divergence, sampling, to_bayesian

net = ModuleWrapper(BBBConv2d(1, 2, 3), torch.nn.ReLU(), FlattenLayer(72), BBBLinear(72, 3, layer_type="flipout"))
images = torch.randn(4, 1, 8, 8)
logits, kl = net(images)
(torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])) + kl / 4).backward()
assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
again = pickle.loads(pickle.dumps(copy.deepcopy(net)))
again.load_state_dict(net.state_dict())
with sampling(net, False), sampling(again, False):
    assert torch.equal(net(images)[0], again(images)[0])
converted = to_bayesian(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)))
assert kl_divergence(converted) > 0
assert not {"layers", "support", "models", "training"} & sys.modules.keys()
"""


def test_the_folder_works_in_another_project_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "vendored").mkdir()
    shutil.copytree(ROOT / "layers", tmp_path / "vendored" / "bayes", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert answer.returncode == 0, answer.stderr
