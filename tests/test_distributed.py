"""Several processes train one network: the same gradients, the same figures, one writer; a lost one is replaced."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import bayesian_settings
from distributed_steps import epoch_of_steps
from test_readme import commands

from likelihoods import Predictive
from models import read_checkpoint
from support import UserError, World, process_group
from tests.processes import ROOT, Program, run_together
from training import initial_state, prepare, resume, save


def torchrun(*arguments: object) -> Program:
    """A launcher, whose processes are new interpreters."""
    return Program("-m", "torch.distributed.run", *arguments, merged=True)


@pytest.mark.parametrize("processes", [2, 3])
def test_without_sampling_the_steps_are_those_of_one_process(processes: int, pictures: Path, tmp_path: Path) -> None:
    """180 training images in batches of 44 leave 4 for the last: shares of 2, and of 2, 1 and 1."""
    worker = ROOT / "tests" / "distributed_steps.py"
    for process in run_together(processes, worker, pictures, tmp_path, tmp_path / "results.pt"):
        assert process.returncode == 0, process.stdout + process.stderr
    together = torch.load(tmp_path / "results.pt")
    alone = epoch_of_steps(pictures, tmp_path / "alone")
    assert len(together["gradients"]) == 5
    for gradients, gradients_alone in zip(together["gradients"], alone["gradients"], strict=True):
        for name, gradient in gradients_alone.items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6 * float(gradient.abs().max()))
    torch.testing.assert_close(together["steps"], alone["steps"], rtol=1e-5, atol=0)
    assert together["steps"][:, 3].tolist() == [44, 44, 44, 44, 4]
    torch.testing.assert_close(together["probs"], alone["probs"], rtol=1e-4, atol=1e-6)
    assert len({tuple(noise.tolist()) for noise in together["noise"]}) == processes
    for weights in together["weights"]:
        assert all(torch.equal(weights[name], value) for name, value in alone["weights"][0].items())
    before, after = together["ivon"]
    for name, value in after[0].items():
        assert all(torch.equal(weights[name], value) for weights in after)
        assert ".prior." in name or not torch.equal(before[0][name], value)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_lost_process_is_replaced_and_the_run_finishes(processes: int, pictures: Path, tmp_path: Path) -> None:
    """By the command of the README, and by the same for one process, which the launcher forks."""
    (words,) = (words for words in commands() if words[0] == "torchrun")
    assert "--nproc_per_node=2" in words
    small = ["--dataset", pictures, "--checkpoint_dir", tmp_path, "--n_epochs", 8, "--batch_size", 20,
             "--valid_ens", 2, "--test_ens", 3]  # fmt: skip
    command = words[1:]
    if processes == 1:
        forked = {
            "--nproc_per_node=2": ["--nproc_per_node=1", "--run-path", "--start-method=fork"],
            "main_bayesian.py": [str(ROOT / "main_bayesian.py")],
        }
        command = [word for each in command for word in forked.get(each, [each])]
    with torchrun(*command, *small) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("epoch 2/8"):
                workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                assert len(workers) == processes
                os.kill(int(workers[-1]), signal.SIGKILL)
        process.communicate(60)
    output = "".join(lines)
    assert process.returncode == 0, output
    folder = tmp_path / "bars" / "bayesian" / "lenet"
    assert f"resuming {tmp_path}/bars/bayesian/last.pt" in output
    results = json.loads((folder / "results.json").read_text())
    assert (results["processes"], results["epochs"]) == (processes, 8)
    assert results["test"]["accuracy"] > 0.9
    epochs = [line.split(",")[0] for line in (folder / "history.csv").read_text().splitlines()[1:]]
    assert epochs == [str(epoch) for epoch in range(1, 9)]
    assert output.count("epoch 8/8") == output.count("test  accuracy") == 1


def test_a_restart_resumes_only_the_same_launch(pictures: Path, tmp_path: Path) -> None:
    settings = bayesian_settings(pictures, tmp_path, n_epochs=1)
    for launch in ("first", "second"):
        setup = prepare(settings, World(launch=launch))
        state = initial_state(setup)
        save(state, setup)
        assert not resume(state, setup)
    assert resume(state, prepare(settings, World(launch="second", restarts=1)))
    assert not resume(state, prepare(settings, World(launch="third", restarts=1)))


def test_more_processes_than_images_are_refused(pictures: Path, tmp_path: Path) -> None:
    flags = ("--dataset", pictures, "--batch_size", 1, "--checkpoint_dir", tmp_path)
    for process in run_together(2, "main_bayesian.py", *flags):
        assert process.returncode == 2
        assert process.stderr.startswith("error: 2 processes are too many for batch_size 1")


def test_processes_end_when_torchrun_is_killed(pictures: Path, tmp_path: Path) -> None:
    """And save first, as for SIGTERM."""
    flags = ("--dataset", pictures, "--n_epochs", 400, "--batch_size", 20, "--checkpoint_dir", tmp_path)
    with torchrun("--standalone", "--nproc_per_node=2", "main_bayesian.py", *flags, "--valid_ens", 1) as process:
        assert any(line.startswith("epoch ") for line in process.stdout)
        process.kill()
        output = process.stdout.read()  # until the last of them has ended
    assert f"{tmp_path}/bars/bayesian/last.pt is written" in output and "Traceback" not in output, output
    assert read_checkpoint(tmp_path / "bars" / "bayesian" / "last.pt")["progress"]["epoch"] < 399


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"RANK": "0"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "RANK": "x"}, "RANK"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "MASTER_PORT"),
    ],
)
def test_an_environment_that_is_not_torchruns_is_one_line(
    variables: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    value = variables.get(name, "")
    with (
        pytest.raises(UserError, match=f"^RANK is set, as by torchrun, but {name} is '{value}': "),
        process_group("cpu"),
    ):
        pass
    if name == "MASTER_PORT":
        monkeypatch.setenv(name, "29500")
        with (
            pytest.raises(UserError, match="^process 0 of 2 cannot join the others: .*MASTER_ADDR"),
            process_group("cpu"),
        ):
            pass


def test_what_was_predicted_in_shares_is_put_together_in_order() -> None:
    def numbered(*numbers: int) -> Predictive:
        column = torch.tensor(numbers, dtype=torch.float32)
        pair = torch.stack([column, -column], 1)
        return Predictive(pair, pair, *[column] * 5, pair, column, column, column > 0)

    whole = Predictive.from_shares([numbered(0, 3, 6), numbered(1, 4), numbered(2, 5)])
    assert whole.expected_entropy.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert whole.probs[:, 1].tolist() == [0, -1, -2, -3, -4, -5, -6]
