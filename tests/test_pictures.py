"""Pictures of every kind in, whole files out."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch import Tensor

from torchconv.style import load_picture, save_picture
from torchconv.style.pictures import FORMATS, to_tensor


def scene() -> Image.Image:
    """Six by four pixels, each of another colour."""
    values = np.arange(72, dtype=np.uint8).reshape(4, 6, 3) * 3 + 20
    return Image.fromarray(values)


def loaded(image: Image.Image, path: Path, **options: object) -> Image.Image:
    image.save(path, **options)  # type: ignore[arg-type]
    result = load_picture(path)
    assert result.mode == "RGB"
    return result


def pixels(image: Image.Image) -> list[tuple[int, ...]]:
    return [tuple(map(int, pixel)) for pixel in np.asarray(image).reshape(-1, 3)]


def test_rgb_unchanged(tmp_path: Path) -> None:
    assert pixels(loaded(scene(), tmp_path / "a.png")) == pixels(scene())
    assert pixels(loaded(scene(), tmp_path / "a.webp", lossless=True)) == pixels(scene())


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_grey_palette_and_bilevel(mode: str, tmp_path: Path) -> None:
    image = scene().convert(mode)
    result = loaded(image, tmp_path / "a.png")
    assert pixels(result) == pixels(image.convert("RGB"))
    assert len(set(pixels(result))) > 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {
        1: scene(),
        2: scene().transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: scene().transpose(Image.Transpose.ROTATE_180),
        4: scene().transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: scene().transpose(Image.Transpose.TRANSPOSE),
        6: scene().transpose(Image.Transpose.ROTATE_90),  # the camera was held turned: shown, it is turned back
        7: scene().transpose(Image.Transpose.TRANSVERSE),
        8: scene().transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    assert pixels(loaded(turned, tmp_path / "a.png", exif=exif)) == pixels(scene())


def test_transparency_is_shown_on_white(tmp_path: Path) -> None:
    white, half, full = (255, 255, 255), (127, 127, 127), (0, 0, 0)
    rgba = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        rgba.putpixel((x, 0), (0, 0, 0, alpha))
    assert pixels(loaded(rgba, tmp_path / "rgba.png")) == [white, half, full]
    assert pixels(loaded(rgba.convert("LA"), tmp_path / "la.png")) == [white, half, full]

    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    assert pixels(loaded(palette, tmp_path / "p.png", transparency=0)) == [white, (10, 20, 30)]
    assert pixels(loaded(palette, tmp_path / "p.gif", transparency=0)) == [white, (10, 20, 30)]


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_sixteen_bits_keep_their_greys(extension: str, tmp_path: Path) -> None:
    values = np.array([[0, 257, 257 * 100, 257 * 200 + 100, 65535]], dtype=np.uint16)
    result = loaded(Image.fromarray(values), tmp_path / f"a.{extension}")
    assert pixels(result) == [(grey,) * 3 for grey in (0, 1, 100, 200, 255)]


def test_thirty_two_bits_and_floats(tmp_path: Path) -> None:
    values = np.array([[0, 257 * 100, 65535]])
    result = loaded(Image.fromarray(values.astype(np.int32)), tmp_path / "i.tif")
    assert pixels(result) == [(grey,) * 3 for grey in (0, 100, 255)]
    result = loaded(Image.fromarray((values / 65535).astype(np.float32)), tmp_path / "f.tif")
    assert pixels(result) == [(grey,) * 3 for grey in (0, 100, 255)]


def test_cmyk_jpeg(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), (200, 40, 90))
    result = loaded(image.convert("CMYK"), tmp_path / "a.jpg", quality=95)
    assert np.abs(np.asarray(result).astype(int) - np.asarray(image)).max() < 6


def test_colour_profiles(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    result = loaded(scene(), tmp_path / "srgb.png", icc_profile=srgb)
    assert np.abs(np.asarray(result).astype(int) - np.asarray(scene())).max() <= 1
    assert pixels(loaded(scene(), tmp_path / "broken.png", icc_profile=b"no profile")) == pixels(scene())


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.png: no such file"):
        load_picture(tmp_path / "none.png")
    with pytest.raises(ValueError, match="got a folder"):
        load_picture(tmp_path)
    (tmp_path / "text.png").write_text("not a picture at all")
    with pytest.raises(ValueError, match=r"text\.png: not a picture"):
        load_picture(tmp_path / "text.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match=r"empty\.png"):
        load_picture(tmp_path / "empty.png")


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tif"])
def test_cut_off_files_are_refused_at_any_length(extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{extension}"
    noise = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(path)
    whole = path.read_bytes()
    for keep in (0.01, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(keep * len(whole))])
        with pytest.raises(ValueError, match=str(path.name)) as error:
            load_picture(path)
        assert "\n" not in str(error.value)


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"a\.png: .*exceeds limit"):
        load_picture(tmp_path / "a.png")


def test_to_tensor_scales_and_resizes() -> None:
    tensor = to_tensor(scene(), (4, 6))
    assert tensor.dtype == torch.float32
    torch.testing.assert_close(tensor, torch.from_numpy(np.array(scene())).permute(2, 0, 1)[None] / 255)
    assert to_tensor(scene(), (9, 2)).shape == (1, 3, 9, 2)


# Saving


def sample() -> Tensor:
    return to_tensor(scene(), (4, 6))


@pytest.mark.parametrize("extension", sorted(FORMATS))
def test_saves_every_format_under_its_name(extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"OUT{extension.upper()}"
    picture = torch.nn.functional.interpolate(sample(), (64, 96), mode="bilinear")
    save_picture(picture, path)
    with Image.open(path) as image:
        assert image.format == FORMATS[extension]
    error = (to_tensor(load_picture(path), (64, 96)) - picture).abs()
    assert error.mean() < (2 if FORMATS[extension] in ("JPEG", "WEBP") else 0.51) / 255
    assert os.listdir(tmp_path) == [path.name]


def test_values_outside_are_cut_off_and_rounded(tmp_path: Path) -> None:
    picture = torch.tensor([-3.0, 0.4 / 255, 0.6 / 255, 9.0]).view(1, 1, 1, 4).expand(1, 3, 1, 4)
    save_picture(picture, tmp_path / "a.png")
    assert pixels(load_picture(tmp_path / "a.png")) == [(v, v, v) for v in (0, 0, 1, 255)]


def test_refuses_unknown_formats(tmp_path: Path) -> None:
    for name in ("a.xyz", "a"):
        with pytest.raises(ValueError, match=r"expected a name that ends in \.png"):
            save_picture(sample(), tmp_path / name)
    assert not os.listdir(tmp_path)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    save_picture(sample(), path)
    old = path.read_bytes()

    def fail(self: Image.Image, file: object, *args: object, **options: object) -> None:
        file.write(b"half a picture")  # type: ignore[attr-defined]
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", fail)
        with pytest.raises(OSError, match="No space left"):
            save_picture(1 - sample(), path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.png"]
    save_picture(1 - sample(), path)
    assert path.read_bytes() != old


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        save_picture(sample(), tmp_path / "none" / "a.png")


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    save_picture(sample(), tmp_path / "a.png")
    (tmp_path / "b").touch()
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)
