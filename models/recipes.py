"""Named hyperparameters of `TransformationDetector`."""

MUON = {"optimizer": "muon", "schedule": "one_cycle", "learning_rate": 1e-2, "weight_decay": 0.0}

RECIPES = {
    "paper": {},
    "one_cycle": {"schedule": "one_cycle", "learning_rate": 4e-3, "weight_decay": 0.0},
}
RECIPES["fast"] = MUON | {
    "widen_factor": 2,
    "samples": 400_000,
    "score_name": "rotation",
    "scored_transformations": "unflipped",
    "alpha_images": 500,
}
RECIPES["best"] = MUON | {
    "transformations": "rotations",
    "augmentation": "views",
    "hidden_layers": 1,
    "depth": 16,
    "widen_factor": 4,
    "samples": 400_000,
    "score_name": "density",
}
RECIPES["small"] = RECIPES["one_cycle"] | {
    "widen_factor": 1,
    "epochs": 2,
    "scored_transformations": "unflipped",
}
RECIPES["best_short"] = RECIPES["best"] | {"widen_factor": 2, "samples": 160_000}
RECIPES["best_small"] = RECIPES["best"] | {
    "augmentation": "none",
    "depth": 10,
    "widen_factor": 1,
    "samples": 10_800,
}
"""`paper` is section 5.3: the constructor's own defaults. `best_short` is a ninth of `best`.
`small` and `best_small` take seconds, for first tries and for digits, which are not mirrored."""
