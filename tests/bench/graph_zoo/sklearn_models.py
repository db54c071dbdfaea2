"""Models of scikit-learn as skl2onnx writes them. Run in an environment that has scikit-learn and nothing of
ours:

    python sklearn_models.py NAME OUT.onnx
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any


def classifier() -> Any:
    """Numbers scaled, three layers."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(
        StandardScaler(), MLPClassifier(hidden_layer_sizes=(64, 48), max_iter=30, random_state=0)
    )


def regressor() -> Any:
    """Two hidden layers of tanh."""
    from sklearn.neural_network import MLPRegressor

    return MLPRegressor(hidden_layer_sizes=(48, 32), activation="tanh", max_iter=30, random_state=0)


def reduced() -> Any:
    """Principal components, then a classifier of two classes."""
    from sklearn.decomposition import PCA
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline

    return make_pipeline(PCA(12), MLPClassifier(hidden_layer_sizes=(64,), max_iter=30, random_state=0))


MODELS = {
    "sklearn, MLPClassifier": classifier,
    "sklearn, MLPRegressor": regressor,
    "sklearn, PCA and MLP": reduced,
}


def listed() -> Iterator[tuple[Any, ...]]:
    """Name and what builds it; the file says what the inputs are."""
    for name, build in MODELS.items():
        yield name, build, ()


def main() -> None:
    import warnings

    import numpy as np
    from skl2onnx import to_onnx
    from sklearn.base import is_classifier

    warnings.simplefilter("ignore")
    numbers = np.random.default_rng(0)
    rows = numbers.standard_normal((300, 20)).astype(np.float32)
    model = MODELS[sys.argv[1]]()
    classes = 2 if "PCA" in sys.argv[1] else 4
    wanted = numbers.integers(0, classes, 300) if is_classifier(model) else rows[:, :3].sum(1)
    model.fit(rows, wanted)
    options = {"zipmap": False} if is_classifier(model) else None
    with open(sys.argv[2], "wb") as file:
        file.write(to_onnx(model, rows[:1], options=options, target_opset=18).SerializeToString())


if __name__ == "__main__":
    main()
