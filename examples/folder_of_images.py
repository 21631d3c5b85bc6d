"""The odd pictures of a folder, by how much a detector that saw good ones finds them unusual.

python -m examples.folder_of_images GOOD_PICTURES/ PICTURES/    93 good ones or more
"""

import sys

import numpy as np

from models.recipes import RECIPES
from models.transformation_detector import TransformationDetector
from utils.folders import read_folder

good = read_folder(sys.argv[1], 32)
pictures = read_folder(sys.argv[2], 32, white=good.white)
held_out = np.arange(len(good.images)) % 5 == 0
detector = TransformationDetector(**RECIPES["best_short"]).fit(good.images[~held_out])
p = detector.calibrate(good.images[held_out]).p_value(pictures.images)
for i in np.argsort(p, kind="stable"):
    print(f"{pictures.paths[i]}: {p[i]:.0%} of good pictures look as odd")
