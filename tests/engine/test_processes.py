"""What processes share of a batch; what they learn is tested with the hypernetwork."""

import pytest
import torch
from torch import nn

from lorasynth.core.errors import ConfigError
from lorasynth.engine.processes import Processes
from lorasynth.engine.trainer import Optimisation, Trainer


def test_shares_are_the_whole_batch_in_order() -> None:
    whole = torch.arange(12).view(6, 2)
    shares = [Processes(index, 3).share(whole) for index in range(3)]
    assert torch.cat(shares).equal(whole)


def test_a_batch_that_cannot_be_shared_evenly_is_refused() -> None:
    Processes(0, 4).require_even(128)
    with pytest.raises(ConfigError, match="use, for example, 132"):
        Processes(0, 4).require_even(130)


def test_weights_are_shared_out_by_fsdp2_and_of_predictors_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"version 1 is asked for: .*--fsdp_version 2"):
        Processes.here(torch.device("cpu"))
    two = Processes(0, 2, sharded=True)
    monkeypatch.setattr(Processes, "here", lambda _: two)
    with pytest.raises(ConfigError, match=r"of predictors alone.*without --use_fsdp"):
        Trainer(nn.Linear(1, 1), Optimisation(steps=1, batch=2, lr=1), None, torch.device("cpu"))
