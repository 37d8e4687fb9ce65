"""The command line in float64: what the code calls float32 is float64, everywhere. For tests that ask whether a difference is rounding."""

import torch

torch.set_default_dtype(torch.float64)
torch.float32 = torch.float64
torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]

from nanochat.cli.app import main  # noqa: E402 (all of our modules are to see the other type)
from nanochat.kernels import build as kernels  # noqa: E402

kernels.load = lambda dtype, folder: "they know no float64"

if __name__ == "__main__":
    main()
