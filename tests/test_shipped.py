"""The weights inside the package are those that their card describes, and do what untrained ones cannot."""

import hashlib
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import skimage

from jaxdesc.ops.matching import reciprocal_nearest
from jaxdesc.ops.metrics import matching_accuracy
from jaxdesc.predict import predictor

WEIGHTS = Path(predictor.SHIPPED)
H_1TO2 = np.array([[0.9, -0.22, 30.0], [0.18, 0.95, -12.0], [2e-4, -1e-4, 1.0]])


@jax.jit
def accuracy(desc1, desc2):
    return matching_accuracy(reciprocal_nearest(desc1, desc2), jnp.array(H_1TO2, jnp.float32), desc2.shape[:2])[0]


def mma(net) -> np.ndarray:
    """MMA@1, 3, 5 on two held-out photographs and their warped copies, which are darker and noisy."""
    found, noise = [], np.random.default_rng(0)
    for name in ("chelsea.png", "coffee.png"):
        image = cv2.imread(str(Path(skimage.__file__).parent / "data" / name))[40:200, 60:252, ::-1]
        warped = cv2.warpPerspective(image, H_1TO2, image.shape[1::-1], borderMode=cv2.BORDER_REFLECT)
        warped = np.clip(0.6 * warped + 20 + noise.normal(0, 20, warped.shape), 0, 255).astype(np.uint8)
        found.append(accuracy(net.describe(np.ascontiguousarray(image)), net.describe(warped)))
    return np.mean(found, 0)


def test_each_file_has_a_card_that_names_its_hash():
    files = sorted(WEIGHTS.glob("*.safetensors"))
    assert files and sum(file.stat().st_size for file in files) <= 20e6
    for file in files:
        assert hashlib.sha256(file.read_bytes()).hexdigest() in file.with_suffix(".md").read_text()


def test_pump_beats_its_untrained_self_by_far(capsys):
    trained = predictor.load("pump")
    assert capsys.readouterr().err == ""
    assert mma(trained)[1] > 0.8
    assert mma(predictor.untrained("pump", **vars(trained.config)))[1] < 0.15
