"""Images that need no download: folders of scikit-learn's handwritten digits."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from utils.images import printable

NORMAL_DIGIT = 4


def write_digits(folder: Path) -> None:
    """Write the folders good, normal, odd and mixed of 16x16 PNGs: fours, but for the odd ones.

    mixed has 31 fours and 10 other digits. Raises ValueError where the folder is there already.
    """
    if folder.exists():
        raise ValueError(f"{printable(folder)} is there already; name a new folder")
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    fours, others = images[digits.target == NORMAL_DIGIT], images[digits.target != NORMAL_DIGIT]
    others = np.random.default_rng(0).permutation(others)
    mixed = [*fours[150:], *others[100:110]]
    parts = {"good": fours[:120], "normal": fours[120:150], "odd": others[:100], "mixed": mixed}
    for name, part in parts.items():
        (folder / name).mkdir(parents=True)
        for i, image in enumerate(part):
            enlarged = Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC)
            enlarged.save(folder / name / f"{i:03}.png")
