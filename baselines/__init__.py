"""The table of all methods: a new one is a file with a `Detector` and a row here."""

from baselines.adgan import ADGAN
from baselines.dagmm import DAGMM
from baselines.deep_svdd import DeepSVDD
from baselines.dsebm import DSEBM
from baselines.ocsvm import CAEOCSVM, RawOCSVM
from models.model_file import RENAMED
from models.recipes import RECIPES
from models.transformation_detector import TransformationDetector
from utils.runs import Method


def _small(**settings):
    """The paper's recipe, and the settings for digits that finish in under a minute a class."""
    return {"paper": {}, "small": settings}


METHODS = {
    "transformations": Method(
        TransformationDetector,
        runs=5,
        recipes=RECIPES,
        hours=14.0,
        large=4.0,
        tells_work=True,
        renamed=RENAMED,
    ),
    "raw_ocsvm": Method(RawOCSVM, runs=1, hindsight=True, hours=0.2),
    "cae_ocsvm": Method(CAEOCSVM, runs=1, hindsight=True, hours=1.5),
    "deep_svdd": Method(
        DeepSVDD,
        runs=5,
        recipes=_small(epochs=20, batch_size=32, learning_rate=1e-3),
        datasets=("cifar10",),
        hours=4.8,
    ),
    "dagmm": Method(
        DAGMM, runs=5, recipes=_small(epochs=100, batch_size=32, covariance_epsilon=0.1), hours=1.2
    ),
    "dsebm": Method(
        DSEBM, runs=5, recipes=_small(epochs=60, batch_size=32, learning_rate=1e-2), hours=1.6
    ),
    "adgan": Method(
        ADGAN,
        runs=1,
        recipes=_small(latent_dim=32, n_seeds=1, epochs=1, batch_size=32, learning_rate=2e-3),
        hours=8.5,
    ),
}
