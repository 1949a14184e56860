"""Pictures in and out: whatever Pillow reads, as (1, 3, H, W) tensors of sRGB in [0, 1]. Needs the extra `style`."""

import io
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
SAVE_OPTIONS = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}


def _eight_bits(image: Image.Image) -> Image.Image:
    """Modes of 16 and 32 bits a pixel, which Pillow would cut off at 255, scaled to 8."""
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.clip(np.rint(values / 257), 0, 255).astype(np.uint8))
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image), nan=0.0)
        return Image.fromarray(np.clip(np.rint(values * (255 if values.max() <= 1 else 1)), 0, 255).astype(np.uint8))
    return image


def _opaque_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB, transparent parts on white."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _srgb(image: Image.Image) -> Image.Image:
    """RGB, CMYK and grey pictures with a colour profile of their own, converted to sRGB; others as they are."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "CMYK", "L"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError):
        return image  # a broken profile: the plain numbers are the better guess


def _read(path: str | os.PathLike[str]) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return _opaque_rgb(_srgb(_eight_bits(ImageOps.exif_transpose(image))))


def load_picture(path: str | os.PathLike[str]) -> Image.Image:
    """Read a picture upright, as opaque 8-bit sRGB.

    EXIF orientation, grey, palette, transparency (shown on white), CMYK, colour profiles and 16 bits a channel are
    taken care of.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a picture, is damaged, or is too large to be meant.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters about a damaged file is raised as well
            return _read(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: expected a picture, got a folder") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not a picture") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: {error}") from None
    except (OSError, SyntaxError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: damaged picture or one that can't be read ({error})") from None


def to_tensor(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """Resize to `size`, (height, width) in pixels, and give (1, 3, height, width) in [0, 1]."""
    resized = image.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float().div_(255)


def to_image(picture: Tensor) -> Image.Image:
    """(1, 3, H, W) in [0, 1] as an 8-bit picture; values outside are cut off."""
    pixels = picture.detach()[0].permute(1, 2, 0).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(pixels.cpu().contiguous().numpy())


def picture_format(path: str | os.PathLike[str]) -> str:
    """The format that a file's extension stands for.

    Raises:
        ValueError: no format, or none that can be written.
    """
    extension = Path(path).suffix.lower()
    if extension not in FORMATS:
        raise ValueError(
            f"{path}: expected a name that ends in {', '.join(FORMATS)}, got {extension or 'no extension'}"
        )
    return FORMATS[extension]


def save_picture(picture: Tensor, path: str | os.PathLike[str]) -> None:
    """Write (1, 3, H, W) in [0, 1]. The file is there whole or not at all: it is written beside and then renamed.

    Raises:
        ValueError: an extension that no format goes by.
        OSError: the folder is missing, can't be written to, or is full.
    """
    kind = picture_format(path)
    image = to_image(picture)
    descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=Path(path).parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            image.save(file, kind, **SAVE_OPTIONS.get(kind, {}))
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp's files are the user's alone
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)  # an interrupt may come when it is renamed already
        raise
