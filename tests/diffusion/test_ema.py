import torch
from torch import nn

from lorasynth.diffusion.ema import AveragedWeights


def _steps(module: nn.Module, average: AveragedWeights, values: list[float]) -> None:
    for value in values:
        with torch.no_grad():
            module.weight.fill_(value)  # type: ignore[union-attr]
        average.step()


def test_averages_with_warm_up_and_puts_the_weights_back() -> None:
    module = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.zero_()
    average = AveragedWeights(module, decay=0.5)
    _steps(module, average, [1.0, 2.0])
    # EMAModel copies at its first step, then weighs the past by min(decay, (1 + n) / (10 + n)).
    expected = 1.0 * (2 / 11) + 2.0 * (9 / 11)
    with average.applied():
        torch.testing.assert_close(module.weight, torch.full((1, 2), expected))
        assert not module.training
    assert (module.weight == 2).all()
    assert module.training
    average.keep()
    torch.testing.assert_close(module.weight, torch.full((1, 2), expected))


def test_state_goes_on_exactly() -> None:
    first, second = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    undisturbed, resumed = AveragedWeights(first, 0.9), AveragedWeights(second, 0.9)
    _steps(first, undisturbed, [1.0, 2.0, 3.0])
    resumed.load_state_dict({k: v.clone() for k, v in undisturbed.state_dict().items()})
    _steps(first, undisturbed, [4.0, 5.0])
    _steps(second, resumed, [4.0, 5.0])
    assert undisturbed.state_dict()["weight"].equal(resumed.state_dict()["weight"])
