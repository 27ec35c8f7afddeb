"""EfficientNet-Lite2: its shapes, and the published weights' way into it."""

from __future__ import annotations

import numpy as np
import pytest

from brainmri.errors import ModelError
from brainmri.teacher import build_teacher, load_teacher_imagenet, without_mask_head


@pytest.fixture(scope="module")
def network():
    return build_teacher(input_size=64, mask_head=True)


def _published(network) -> dict[str, np.ndarray]:
    """Arrays as the published file lays them out, drawn at random."""
    rng, arrays = np.random.default_rng(0), {}
    for norm in (x for x in network.layers if x.name.endswith("_bn")):
        kernel = network.get_layer(norm.name.removesuffix("_bn")).kernel
        shape = tuple(kernel.shape)
        rows, columns, *channels = shape
        order = channels if "depthwise" in norm.name else channels[::-1]
        arrays[f"{norm.name}.kernel"] = rng.normal(0, 0.05, (*order, rows, columns)).astype(np.float32)
        for k in range(4):
            arrays[f"{norm.name}.{k}"] = rng.uniform(0.5, 1.5, shape[3] * shape[2] if order is channels else shape[3])
    return arrays


def test_it_has_the_published_size(network):
    plain = without_mask_head(network)
    assert plain.count_params() == 4_869_168 + 4 * 1280 + 4  # Lite2's 6.09 million less its 1,000 classes'
    shapes = {name: tuple(x.shape) for name, x in network.output.items()}
    assert shapes == {"probabilities": (None, 4), "mask": (None, 4, 4, 4)}
    assert plain.output_shape == (None, 4)


def test_published_weights_fill_it_in_order(network, tmp_path):
    arrays = _published(network)
    np.savez(tmp_path / "lite2.npz", **arrays)
    load_teacher_imagenet(network, tmp_path / "lite2.npz")
    for name in ("stem", "block0_depthwise", "block20_project", "head"):
        kernel = network.get_layer(name).kernel.numpy()
        published = arrays[f"{name}_bn.kernel"]
        order = (2, 3, 0, 1) if name.endswith("depthwise") else (2, 3, 1, 0)
        np.testing.assert_array_equal(kernel, published.transpose(order))
        _, shift, mean, _ = network.get_layer(f"{name}_bn").get_weights()
        np.testing.assert_allclose(mean, arrays[f"{name}_bn.2"], rtol=1e-6)
        np.testing.assert_allclose(shift, arrays[f"{name}_bn.1"], rtol=1e-6)


def test_what_does_not_fit_is_named(network, tmp_path):
    with pytest.raises(ModelError, match=r"teacher_weights\.py"):
        load_teacher_imagenet(network, tmp_path / "none.npz")
    arrays = _published(network)
    np.savez(tmp_path / "short.npz", **dict(list(arrays.items())[:-1]))
    with pytest.raises(ModelError, match=r"holds 319 arrays.* needs 320"):
        load_teacher_imagenet(network, tmp_path / "short.npz")
    np.savez(tmp_path / "wrong.npz", **(arrays | {"stem_bn.kernel": np.zeros((8, 3, 3, 3))}))
    with pytest.raises(ModelError, match="stem has kernel"):
        load_teacher_imagenet(network, tmp_path / "wrong.npz")


def test_a_teacher_is_not_served():
    from typer.testing import CliRunner

    from brainmri.cli import app

    result = CliRunner().invoke(app, ["train", "--recipe", "teacher", "--model-id", "wrong"])
    assert result.exit_code != 0
    assert "a teacher is not served" in str(result.exception) + result.output
