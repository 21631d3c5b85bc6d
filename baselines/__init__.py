"""The table of all methods: a new one is a file with a `Detector` and a row here."""

from collections.abc import Callable
from dataclasses import dataclass, field

from baselines.adgan import ADGAN
from baselines.dagmm import DAGMM
from baselines.deep_svdd import DeepSVDD
from baselines.dsebm import DSEBM
from baselines.ocsvm import CAEOCSVM, RawOCSVM
from models.recipes import RECIPES
from models.transformation_detector import TransformationDetector
from utils.detector import Detector


@dataclass(frozen=True)
class Method:
    """How to make a method's detector, and how the paper ran it.

    runs: how many of each class. recipes: settings by name. hindsight: the detector chooses
    settings by the test labels, as the paper lets the one-class SVMs do, through
    `score_in_hindsight(x, normal)`. backends: Keras's, on which it trains.
    """

    create: Callable[..., Detector]
    runs: int
    recipes: dict[str, dict] = field(default_factory=lambda: {"paper": {}, "small": {}})
    hindsight: bool = False
    backends: tuple[str, ...] = ("tensorflow", "torch", "jax")


def _small(**settings):
    """The paper's recipe, and the settings for digits that finish in under a minute a class."""
    return {"paper": {}, "small": settings}


METHODS = {
    "transformations": Method(TransformationDetector, runs=5, recipes=RECIPES),
    "raw_ocsvm": Method(RawOCSVM, runs=1, hindsight=True),
    "cae_ocsvm": Method(CAEOCSVM, runs=1, hindsight=True),
    "deep_svdd": Method(
        DeepSVDD,
        runs=5,
        recipes=_small(epochs=20, batch_size=32, learning_rate=1e-3),
    ),
    "dagmm": Method(
        DAGMM, runs=5, recipes=_small(epochs=100, batch_size=32, covariance_epsilon=0.1)
    ),
    "dsebm": Method(DSEBM, runs=5, recipes=_small(epochs=60, batch_size=32, learning_rate=1e-2)),
    "adgan": Method(
        ADGAN,
        runs=1,
        recipes=_small(latent_dim=32, n_seeds=1, epochs=1, batch_size=32, learning_rate=2e-3),
        backends=("tensorflow", "torch"),
    ),
}
