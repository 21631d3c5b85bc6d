"""Anomaly maps as pictures."""

import numpy as np
from PIL import Image

RED = (224, 32, 24)
STRONGEST = 190
"""The alpha, of 255, of a map's highest pixel."""


def heat(anomaly_map: np.ndarray) -> Image.Image:
    """A map (h, w) as a red picture, the more opaque the higher: transparent at 0 and below."""
    share = np.clip(anomaly_map / max(anomaly_map.max(), 1e-300), 0, 1)
    pixels = np.empty((*anomaly_map.shape, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = RED, np.rint(STRONGEST * share)
    return Image.fromarray(pixels)


def overlaid(image: np.ndarray, anomaly_map: np.ndarray, box: tuple) -> Image.Image:
    """An image (h, w, 3) of bytes, the map over the box that it is of, and the rest darkened.

    box: (left, top, right, bottom), as of `utils.images.boxes`.
    """
    left, top = round(box[0]), round(box[1])
    width, height = round(box[2] - box[0]), round(box[3] - box[1])
    dark = Image.fromarray(image // 2)
    part = Image.fromarray(image[top : top + height, left : left + width]).convert("RGBA")
    part.alpha_composite(heat(anomaly_map).resize(part.size, Image.Resampling.BICUBIC))
    dark.paste(part.convert("RGB"), (left, top))
    return dark
