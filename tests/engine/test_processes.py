"""What processes share of a batch; what they learn is tested with the hypernetwork."""

import pytest
import torch

from lorasynth.core.errors import ConfigError
from lorasynth.engine.processes import Processes


def test_shares_are_the_whole_batch_in_order() -> None:
    whole = torch.arange(12).view(6, 2)
    shares = [Processes(index, 3).share(whole) for index in range(3)]
    assert torch.cat(shares).equal(whole)


def test_a_batch_that_cannot_be_shared_evenly_is_refused() -> None:
    Processes(0, 4).require_even(128)
    with pytest.raises(ConfigError, match="use, for example, 132"):
        Processes(0, 4).require_even(130)
