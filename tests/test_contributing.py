"""The recipes of CONTRIBUTING.md work as they are written, one after the other, in a program of their own."""

from __future__ import annotations

from conftest import ROOT, Script
from test_readme import blocks

CHECKS = """
from layers import BBBConv2d, kl_divergence, sampling, to_bayesian
from inference import posterior_predictive
from training import BayesianSettings, from_config

torch.manual_seed(0)
plain = nn.Bilinear(3, 4, 5)
layer = to_bayesian(nn.Sequential(plain))[0]
assert isinstance(layer, BBBBilinear) and kl_divergence(layer) > 0
one, other = torch.randn(6, 3), torch.randn(6, 4)
with sampling(layer, False):
    torch.testing.assert_close(layer(one, other), plain(one, other))
assert not torch.equal(layer(one, other), layer(one, other))

linear = BBBLinear(4, 2, posterior="exponential", layer_type="lrt")
gaussian = torch.distributions.Normal(linear.weight, torch.full((2, 4), -5.).exp())
bias = torch.distributions.Normal(linear.bias, torch.full((2,), -5.).exp())
prior = torch.distributions.Normal(0, 1)
exact = sum(torch.distributions.kl_divergence(q, prior).sum() for q in (gaussian, bias))
torch.testing.assert_close(kl_divergence(linear), exact)
draws = torch.stack([linear(torch.ones(1, 4)) for _ in range(4000)])
assert abs(draws.std(0) / (5 ** 0.5 * torch.tensor(-5.).exp()) - 1).max() < 0.05

pair = BBBLinear(4, 2, layer_type="antithetic")
first, mirror = pair(torch.ones(2, 4))
with sampling(pair, False):
    torch.testing.assert_close((first + mirror) / 2, pair(torch.ones(1, 4))[0])
assert not torch.equal(first, mirror)


class Rolled(ModuleWrapper):
    def __init__(self):
        super().__init__()
        self.conv = BBBConv2d(1, 2, 3)
        self.fc = BBBLinear(8, 3)
    def forward(self, images):
        maps = self.conv(images).roll(1, -1)[..., :2, :2]
        return self.fc(maps.flatten(1)), self.kl()


net, images = Rolled(), torch.randn(5, 1, 8, 8)
by_moments, by_draws = (posterior_predictive(net, images, 400, method=method) for method in ("moments", "draws"))
torch.testing.assert_close(by_moments.probs, by_draws.probs, atol=0.01, rtol=0)
torch.testing.assert_close(SCORES["margin"](by_moments), by_moments.probs.sort().values.diff()[:, -1].neg())
assert optimizer.param_groups[1]["lr"] == 10 * optimizer.param_groups[0]["lr"]

import main_bayesian, tempfile
with tempfile.TemporaryDirectory() as folder:
    flags = "--dataset stripes --n_epochs 2 --batch_size 20 --lr_start 3e-3 --valid_ens 1 --test_ens 2"
    main_bayesian.main([*flags.split(), "--checkpoint_dir", folder])
"""


def test_the_recipes(script: Script) -> None:
    recipes = "\n".join(blocks("python", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert "accuracy" in script("-c", recipes + CHECKS).stdout
