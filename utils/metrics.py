"""How well a score separates normal images from anomalies."""

import numpy as np
from sklearn.metrics import auc, precision_recall_curve, roc_auc_score


def auroc(normal: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve of scores (n,), higher = more normal; normal: (n,) bool."""
    return float(roc_auc_score(normal, scores))


def evaluate(normal: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """The metrics of section 3: areas under the ROC and both precision-recall curves.

    normal: (n,) bool, True for images of the normal class. scores: (n,), higher = more normal.
    Normal is the positive class of auroc and aupr_normal; anomaly that of aupr_anomaly, ranked by
    -scores. The areas under the precision-recall curves are by trapezoids.

    Raises ValueError where there is only one kind of image or a score is not finite.
    """
    normal, scores = np.asarray(normal, bool), np.asarray(scores, np.float64)
    if normal.all() or not normal.any():
        raise ValueError(
            f"{normal.sum()} normal images and {(~normal).sum()} anomalies: metrics need both kinds"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"{np.sum(~np.isfinite(scores))} of {len(scores)} scores are not finite")
    result = {"auroc": auroc(normal, scores)}
    for name, positive, ranking in (("normal", normal, scores), ("anomaly", ~normal, -scores)):
        precision, recall, _ = precision_recall_curve(positive, ranking, drop_intermediate=True)
        result[f"aupr_{name}"] = float(auc(recall, precision))
    return result
