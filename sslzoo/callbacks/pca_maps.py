"""PCAMaps: save a picture of the principal components of patch tokens at the end of training."""

from __future__ import annotations

from PIL import Image
from torch import Tensor, nn

from sslzoo.callbacks.encoder_picture import EncoderPicture
from sslzoo.eval.dense.maps import feature_map
from sslzoo.eval.dense.pca import pca_picture
from sslzoo.eval.loaders import EvalLoaders


class PCAMaps(EncoderPicture):
    """Write `eval.dense.pca_picture` to `<filename>.png` in the run directory.

    The images are the first of the validation set, or of the training set if there is none.

    Args:
        count: number of images, one per row of the picture, which share one PCA.
        filename: file name without suffix, in the run directory.
        foreground: see `pca_colors`.
        loaders: source of the images; None: the data module's.

    Raises:
        ValueError: the count is below 1; at the start of fit, the encoder has no feature map, or
            the data has no such loaders.
    """

    def __init__(
        self,
        count: int = 8,
        filename: str = "pca",
        foreground: bool = False,
        loaders: EvalLoaders | None = None,
    ) -> None:
        super().__init__(count, filename, loaders)
        self.foreground = foreground

    def picture(self, encoder: nn.Module, images: Tensor) -> Image.Image:
        return pca_picture(images, feature_map(encoder, images), self.foreground)
