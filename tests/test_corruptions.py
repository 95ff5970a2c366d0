"""Every corruption against what its constants say, in closed form where there is one."""

from __future__ import annotations

import colorsys
import io
import itertools
import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from images import CORRUPTIONS, FOR_CHOOSING, KINDS, corrupt
from inference import plots
from support import UserError

NOISES = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")
PER_VALUE = (*NOISES, "jpeg")  # JPEG converts colors, and loses some of them


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    """Smooth colors with edges at random places: uint8 [40, 3, 32, 32]."""
    generator = torch.Generator().manual_seed(3)
    pixels = F.interpolate(torch.rand(40, 3, 7, 7, generator=generator), 32, mode="bicubic").clamp(0.02, 1)
    for image, (top, left) in zip(pixels, torch.randint(2, 22, (40, 2), generator=generator).tolist(), strict=True):
        image[:, top : top + 8, left : left + 9] = 0.02 + 0.8 * torch.rand(3, 1, 1, generator=generator)
    return (255 * pixels).round().to(torch.uint8)


def flat(level: int, count: int = 16) -> Tensor:
    return torch.full((count, 1, 32, 32), level, dtype=torch.uint8)


def distance(images: Tensor, kind: str, severity: int) -> float:
    return (corrupt(images, kind, severity).double() - images.double()).square().mean().item()


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_pure_function_that_grows_with_the_severity(photographs: Tensor, kind: str) -> None:
    before = photographs.clone()
    state = torch.get_rng_state()
    distances = [distance(photographs, kind, severity) for severity in range(6)]
    assert torch.equal(photographs, before) and torch.equal(torch.get_rng_state(), state)
    assert distances[0] == 0 < distances[1]
    if kind in ("elastic", "saturate"):  # published figures: the larger, affine part of the first shrinks as its
        assert distances[5] > 0  # ripples grow, and the second goes from little color to much
    else:
        assert all(higher >= 0.99 * lower for lower, higher in itertools.pairwise(distances)), distances
        assert distances[5] > 1.5 * distances[1]
    for images in (photographs, photographs[:, :1]):
        corrupted = corrupt(images, kind, 4, seed=7)
        assert corrupted.dtype == torch.uint8 and corrupted.shape == images.shape
        assert torch.equal(corrupted, corrupt(images, kind, 4, seed=7))
        deterministic = kind in (
            "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg", "scale", "gaussian_blur",
            "saturate",
        )  # fmt: skip
        assert torch.equal(corrupted, corrupt(images, kind, 4, seed=8)) == deterministic
    assert corrupt(photographs[:0], kind, 3).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in PER_VALUE])
def test_a_grey_image_is_a_color_image_of_equal_channels(photographs: Tensor, kind: str) -> None:
    grey = photographs[:, :1]
    corrupted = corrupt(grey.expand(-1, 3, -1, -1).contiguous(), kind, 5, seed=2)
    assert torch.equal(corrupted, corrupt(grey, kind, 5, seed=2).expand(-1, 3, -1, -1))


@pytest.mark.parametrize("severity", range(1, 6))
def test_noise_has_the_moments_that_its_constants_say(severity: int) -> None:
    """Away from 0 and 255, and up to rounding, whose variance is 1/12."""
    grey, count = flat(102), 16 * 1024
    std, photons, fraction = (
        CORRUPTIONS[kind].constants[severity - 1] for kind in ("gaussian_noise", "shot_noise", "impulse_noise")
    )
    for kind, variance in (("gaussian_noise", (255 * std) ** 2), ("shot_noise", 255 * 102 / photons)):
        noise = corrupt(grey, kind, severity).double() - 102
        assert abs(noise.mean().item()) < 4 * math.sqrt(variance / count)
        # The variance of a variance is 2σ⁴/n for a Gaussian, and hardly more for hundreds of photons.
        assert noise.var().item() == pytest.approx(variance + 1 / 12, rel=5 * math.sqrt(2 / count))
    impulses = corrupt(grey, "impulse_noise", severity)
    for level in (0, 255):
        expected = count * fraction / 2
        assert abs((impulses == level).sum().item() - expected) < 4 * math.sqrt(expected)
    assert set(impulses.unique().tolist()) == {0, 102, 255}


@pytest.mark.parametrize("severity", range(1, 6))
def test_kinds_for_choosing_do_what_their_constants_say(severity: int) -> None:
    std, width, (factor, shift) = (FOR_CHOOSING[kind].constants[severity - 1] for kind in FOR_CHOOSING)
    speckles = corrupt(flat(102), "speckle_noise", severity).double() - 102
    variance = (102 * std) ** 2
    assert abs(speckles.mean().item()) < 4 * math.sqrt(variance / speckles.numel())
    expected = pytest.approx(variance + 1 / 12, rel=5 * math.sqrt(2 / speckles.numel()))
    assert speckles.var().item() == expected

    point = flat(0, 1)
    point[:, :, 16, 16] = 255
    weights = torch.exp(-((torch.arange(32.0) - 16) ** 2) / (2 * width**2))
    weights /= weights.sum()
    spread = corrupt(point, "gaussian_blur", severity)[0, 0].double()
    torch.testing.assert_close(spread, 255 * torch.outer(weights, weights).double(), rtol=0, atol=0.6)

    hues = torch.rand(64, 3, generator=torch.Generator().manual_seed(0))
    pixels = (255 * hues).round().to(torch.uint8)
    saturated = corrupt(pixels.view(64, 3, 1, 1), "saturate", severity).view(64, 3)
    for before, after in zip(pixels.tolist(), saturated.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(level / 255 for level in before))
        wanted = colorsys.hsv_to_rgb(hue, min(max(factor * saturation + shift, 0), 1), value)
        assert after == pytest.approx([255 * level for level in wanted], abs=0.51)


def test_blurs_keep_what_is_flat_and_move_light_by_the_kernels_that_they_name() -> None:
    for kind in ("defocus_blur", "motion_blur", "zoom_blur", "gaussian_blur"):
        assert torch.equal(corrupt(flat(77), kind, 5), flat(77))
    point = flat(0, 200)
    point[:, :, 16, 16] = 255
    disk = corrupt(point[:1], "defocus_blur", 4)[0, 0].double()  # of radius 1: a plus, hardly smoothed
    plus = torch.tensor([[0, 1, 0], [1, 1, 1], [0, 1, 0]]).double() * 51
    torch.testing.assert_close(disk[15:18, 15:18], plus, rtol=0, atol=1)
    assert abs(disk.sum().item() - 255) <= 9
    trails = corrupt(point, "motion_blur", 3).double()  # half a Gaussian of standard deviation 2
    weights = torch.exp(-(torch.arange(13.0) ** 2) / 8)
    expected = 255 * weights[0] / weights.sum()
    assert (trails[:, 0, 16, 16] - expected).abs().max() <= 0.5
    rows, columns = np.nonzero(trails.amax((0, 1)).numpy())
    assert columns.max() == 16 and columns.min() < 12  # to one side, at −45° to 45°
    assert (np.abs(rows - 16) <= 16 - columns).all()
    angles = [math.atan2(*(int(i) - 16 for i in np.argwhere(trail[0].numpy() > 2).mean(0))) for trail in trails]
    assert np.std(angles) > 0.1  # per image


def test_zooms_leave_the_center_and_average_a_ramp_by_their_factors() -> None:
    ramp = (4 * torch.arange(32)).to(torch.uint8).expand(1, 1, 32, 32).contiguous()
    factors = 1 + torch.arange(26).double() / 100
    offset = 4 * (torch.arange(32).double() - 15.5)
    expected = 62 + offset * (1 + (1 / factors).sum()) / 27
    blurred = corrupt(ramp, "zoom_blur", 5)[0, 0].double()
    assert (blurred - expected).abs().max() <= 0.51


def test_fog_scales_the_sum_to_the_brightest_value() -> None:
    black = corrupt(flat(0), "fog", 5)
    assert (black == 0).all()  # the published rule: an image without light has no fog
    white = corrupt(flat(255, 40), "fog", 5).double() / 255  # (1 + 1.5·cloud) / 2.5
    clouds = (2.5 * white - 1) / 1.5
    assert clouds.amin((1, 2, 3)).max() < 0.005 and clouds.amax((1, 2, 3)).min() > 0.995
    assert clouds.flatten(1).std(1).min() > 0.05
    for severity, decay in ((4, 2), (5, 1.75)):
        fogged = corrupt(flat(255, 400), "fog", severity)[:, 0].double()

        def variation(half: int, fogged: Tensor = fogged) -> float:
            """Of the centers of squares of twice this size about the mean of their corners."""
            corners = sum(fogged.roll((down, right), (1, 2)) for down in (-half, half) for right in (-half, half))
            return (fogged - corners / 4)[:, half :: 2 * half, half :: 2 * half].square().mean().item()

        assert variation(8) / variation(4) == pytest.approx(decay**4, rel=0.2)


def test_brightness_and_contrast_are_their_formulas(photographs: Tensor) -> None:
    pixels = photographs.double()
    value = pixels.amax(1, keepdim=True)
    assert (value > 0).all()
    bright = pixels * (value + 0.3 * 255).clamp_max(255) / value
    assert (corrupt(photographs, "brightness", 5).double() - bright).abs().max() <= 0.501
    assert torch.equal(corrupt(flat(0), "brightness", 2), flat(26))  # 25.5 rounds to even
    mean = pixels.mean((2, 3), keepdim=True)
    faint = corrupt(photographs, "contrast", 5).double()
    assert (faint - (mean + 0.15 * (pixels - mean))).abs().max() <= 0.501


def test_pillow_does_its_part(photographs: Tensor) -> None:
    for images, mode in ((photographs, "RGB"), (photographs[:, :1], "L")):
        stream = io.BytesIO()
        picture = Image.fromarray(images[4].permute(1, 2, 0).squeeze(-1).numpy(), mode)
        picture.save(stream, "JPEG", quality=58)
        expected = torch.from_numpy(np.array(Image.open(stream))).reshape(32, 32, -1).permute(2, 0, 1)
        assert torch.equal(corrupt(images, "jpeg", 3)[4], expected)
        small = picture.resize((24, 24), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
        expected = torch.from_numpy(np.array(small)).reshape(32, 32, -1).permute(2, 0, 1)
        assert torch.equal(corrupt(images, "pixelate", 4)[4], expected)


def test_an_elastic_warp_without_ripples_is_affine_and_one_with_them_is_not() -> None:
    """A ramp stays a ramp, away from the mirrored borders: its second differences are those of rounding."""
    ramp = (7 * torch.arange(32)).to(torch.uint8).expand(8, 1, 32, 32).contiguous()
    for severity, largest in ((1, 2), (5, 255)):
        inside = corrupt(ramp, "elastic", severity).double()[..., 9:23, 9:23]
        bend = (inside[..., 2:] - 2 * inside[..., 1:-1] + inside[..., :-2]).abs().max()
        assert (bend <= largest) and (bend <= 2) == (severity == 1)


def test_rotation_translation_and_scale_move_by_their_constants(photographs: Tensor) -> None:
    many = photographs[:1].expand(64, -1, -1, -1).contiguous()
    for severity, distance in enumerate((1, 2, 3, 4, 5), 1):
        moved = {image.numpy().tobytes() for image in corrupt(many, "translation", severity)}
        shifts = [(down, right) for down in (-distance, distance) for right in (-distance, distance)]
        expected = {
            F.pad(photographs[0], [right, -right, down, -down]).contiguous().numpy().tobytes()
            for down, right in shifts
        }  # fmt: skip
        assert moved == expected
    point = flat(0, 64)
    point[:, :, 15:17, 24:26] = 255  # 9 pixels to the right of the center
    for severity, angle in enumerate((0.2, 0.4, 0.6, 0.8, 1.0), 1):
        turned = corrupt(point, "rotation", severity)[:, 0].double()
        y, x = (center_of(turned, axis) - 15.5 for axis in (1, 2))
        torch.testing.assert_close(torch.atan2(-y, x).abs(), torch.full((64,), angle).double(), rtol=0, atol=0.03)
        assert (y > 0).any() and (y < 0).any()
    for severity, factor in enumerate((0.9, 0.8, 0.7, 0.6, 0.5), 1):
        x = center_of(corrupt(point[:1], "scale", severity)[:, 0].double(), 2) - 15.5
        assert x.item() == pytest.approx(9 * factor, abs=0.3)


def center_of(images: Tensor, axis: int) -> Tensor:
    """The mean position of the light along an axis, [n]."""
    position = torch.arange(32.0).double().view(-1, 1) if axis == 1 else torch.arange(32.0).double()
    return (images * position).sum((1, 2)) / images.sum((1, 2))


def test_other_kinds_severities_and_images_are_refused(photographs: Tensor) -> None:
    with pytest.raises(UserError, match="unknown corruption 'gausian_noise': did you mean 'gaussian_noise'"):
        corrupt(photographs, "gausian_noise", 1)
    for severity in (6, -1, 1.5, 2.0):
        with pytest.raises(ValueError, match="severity must be an integer from 0 to 5"):
            corrupt(photographs, "fog", severity)  # type: ignore[arg-type]
    for images in (photographs.float(), photographs[0], photographs[:, :2]):
        with pytest.raises(ValueError, match="expected uint8 images"):
            corrupt(images, "fog", 1)


def test_the_picture_shows_every_kind_at_every_severity(photographs: Tensor, tmp_path: Path) -> None:
    picture = matplotlib.image.imread(plots.plot_corruptions(tmp_path / "corruptions.png", photographs[0, :1]))
    height, width = picture.shape[0] // 5, picture.shape[1] // 3
    strips = [picture[r * height : (r + 1) * height, c * width : (c + 1) * width] for r in range(5) for c in range(3)]
    assert min(strip[height // 2 :, :, :3].std() for strip in strips) > 0.05  # each has images, below its title
    two = matplotlib.image.imread(plots.plot_corruptions(tmp_path / "two.png", photographs[0], ["fog", "saturate"]))
    assert two.shape[:2] == (height, 2 * width) and (two[..., 0] != two[..., 2]).mean() > 0.3  # in color, those alone
