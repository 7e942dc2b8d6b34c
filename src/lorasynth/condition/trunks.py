"""Small image networks of several architectures, so that they err apart."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from lorasynth.images.files import to_unit_range


class _Residual(nn.Module):
    """Two 3 x 3 convolutions beside an identity (He et al. 2016, pre-activation)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        hidden = functional.relu(self.norm1(x))
        out: Tensor = self.conv2(functional.relu(self.norm2(self.conv1(hidden)))) + self.skip(
            hidden
        )
        return out


class _Depthwise(nn.Module):
    """A 5 x 5 depthwise convolution and a pointwise MLP (after Liu et al. 2022).

    Batch norm, because a norm over one image would scale what is read of a face by its scene.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.BatchNorm2d(width)
        self.expand = nn.Conv2d(width, 4 * width, 1)
        self.reduce = nn.Conv2d(4 * width, width, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        out: Tensor = x + self.reduce(functional.gelu(self.expand(self.norm(self.depthwise(x)))))
        return out


def residual_trunk(image_size: int, features: int) -> nn.Sequential:
    """A residual network that ends in a fully connected layer over all positions."""
    widths = (24, 48, 96, 160) if image_size < 128 else (16, 32, 64, 128, 192)
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 5, 2, padding=2, bias=False)]
    for before, after in pairwise(widths):
        layers += [_Residual(before, after, 2), _Residual(after, after, 1)]
    cells = (image_size // 2 ** len(widths)) ** 2
    layers += [nn.BatchNorm2d(widths[-1]), nn.ReLU(), nn.Flatten()]
    layers += [nn.Linear(widths[-1] * cells, features)]
    return nn.Sequential(*layers)


def separable_trunk(image_size: int, features: int) -> nn.Sequential:
    """Depthwise blocks between overlapping strides, then an MLP over all positions.

    Of large images the first stride is longer, since these blocks cost most where there are most
    positions.
    """
    stem, widths, stride = 24, (32, 64, 128), 2
    if image_size >= 128:
        stem, widths, stride = 48, (64, 128, 192), 4
    layers: list[nn.Module] = [
        nn.Conv2d(3, stem, stride + 3, stride, padding=2, bias=False),
        nn.BatchNorm2d(stem),
        nn.GELU(),
    ]
    for before, width in pairwise((stem, *widths)):
        layers.append(nn.Conv2d(before, width, 3, 2, padding=1))
        layers += [_Depthwise(width) for _ in range(2)]
        layers.append(nn.BatchNorm2d(width))
    cells = (image_size // stride // 2 ** len(widths)) ** 2
    layers += [nn.Flatten(), nn.Linear(widths[-1] * cells, 1024)]
    layers += [nn.GELU(), nn.Linear(1024, features)]
    return nn.Sequential(*layers)


#: Architectures by name, as configs give them.
TRUNKS: dict[str, Callable[[int, int], nn.Sequential]] = {
    "residual": residual_trunk,
    "separable": separable_trunk,
}


def unit_batches(
    images: UInt8[Tensor, "b h w 3"], size: int, device: torch.device, batch: int = 256
) -> Iterator[Float[Tensor, "part 3 size size"]]:
    """Images as networks see them: from -1 to 1, scaled to squares, a batch at a time."""
    for part in images.split(batch):
        unit = to_unit_range(part.to(device))
        if unit.shape[2:] != (size, size):
            unit = functional.interpolate(unit, (size, size), mode="bilinear", antialias=True)
        yield unit


def augment(
    images: Float[Tensor, "b 3 h w"], generator: torch.Generator
) -> Float[Tensor, "b 3 h w"]:
    """Degrade images a little, as a diffusion model's samples are: soften, shift, add noise.

    How far is a share of the image's side, so that images of 128 pixels lose what those of 64 do.
    Colours are left alone: they are part of who somebody is.
    """
    b, device = images.shape[0], images.device
    reach = max(1, images.shape[-1] // 64)
    share = torch.rand(b, 1, 1, 1, generator=generator, device=device) * 0.7
    padded = functional.pad(images, (reach,) * 4, mode="replicate")
    images = images + share * (functional.avg_pool2d(padded, 2 * reach + 1, 1) - images)
    shift = (-2 * reach, 2 * reach + 1)
    dy, dx = torch.randint(*shift, (2,), generator=generator, device=device).tolist()
    images = torch.roll(images, (dy, dx), dims=(2, 3))
    level = torch.rand(b, 1, 1, 1, generator=generator, device=device) * 0.08
    noise = torch.randn(images.shape, generator=generator, device=device)
    return images + level * noise
