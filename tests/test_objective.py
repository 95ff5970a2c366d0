"""The objective and the schedules of its KL."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from support import UserError
from training import expected_nll, kl_weight, negative_elbo


@pytest.mark.parametrize("batches", [1, 2, 7, 100, 5000])
def test_standard_and_blundell_average_to_one_over_an_epoch(batches: int) -> None:
    for beta_type in ("Standard", "Blundell"):
        for epoch in (0, 3):
            weights = [kl_weight(beta_type, epoch * batches + i, batches, 5) for i in range(batches)]
            assert math.fsum(weights) / batches == pytest.approx(1, rel=1e-12)


def test_blundell_halves_from_batch_to_batch() -> None:
    weights = [kl_weight("Blundell", i, 10, 1) for i in range(10)]
    assert weights == pytest.approx([10 * 2 ** (10 - i) / (2**10 - 1) for i in range(1, 11)], rel=1e-12)


def test_soenderby_rises_over_the_first_quarter_and_stays() -> None:
    weights = [kl_weight("Soenderby", step, 10, 8) for step in range(80)]
    assert weights[0] == 0 and weights[10] == pytest.approx(0.5) and set(weights[20:]) == {1.0}
    assert weights == sorted(weights)
    assert kl_weight("Soenderby", 0, 1, 1) == 0 and kl_weight("Soenderby", 1, 1, 1) == 1


def test_a_number_is_the_temperature() -> None:
    assert {kl_weight(0.3, step, 4, 4) for step in range(16)} == {0.3}


def test_an_unknown_schedule_is_one_line() -> None:
    with pytest.raises(UserError, match="unknown beta_type 'blundel': did you mean 'Blundell'"):
        kl_weight("blundel", 0, 1, 1)


def test_the_objective_is_the_mean_log_likelihood_not_the_log_of_the_mean() -> None:
    labels = torch.tensor([0, 2])
    samples = [torch.randn(2, 3, dtype=torch.float64) for _ in range(4)]
    log_likelihoods = [s.log_softmax(-1)[torch.arange(2), labels] for s in samples]
    expected = -torch.stack(log_likelihoods).mean()
    torch.testing.assert_close(expected_nll(samples, labels), expected)
    mixture = -torch.stack([s.softmax(-1) for s in samples]).mean(0)[torch.arange(2), labels].log().mean()
    assert mixture < expected
    torch.testing.assert_close(expected_nll(samples[:1], labels), F.cross_entropy(samples[0], labels))


def test_the_kl_is_shared_by_the_training_examples() -> None:
    loss = negative_elbo(torch.tensor(0.5), torch.tensor(300.0), 0.1, 60)
    assert loss.item() == pytest.approx(0.5 + 0.1 * 300 / 60)
