"""AttentionMaps: save a picture of a ViT's class-token attention at the end of training."""

from __future__ import annotations

from PIL import Image
from torch import Tensor, nn

from sslzoo.callbacks.encoder_picture import EncoderPicture
from sslzoo.eval.attention import attention_picture, cls_attention
from sslzoo.eval.loaders import EvalLoaders


class AttentionMaps(EncoderPicture):
    """Write `eval.attention.attention_picture` to `<filename>.png` in the run directory.

    The images are the first of the validation set, or of the training set if there is none.
    The encoder is the method's `encoder()`: the teacher's for DINO and iBOT.

    Args:
        count: see `EncoderPicture`, as are the other arguments.
        filename: file name without suffix, in the run directory.
        loaders: source of the images; None: the data module's.

    Raises:
        ValueError: the count is below 1; at the start of fit, the encoder is no ViT with a class
            token, or the data has no such loaders.
    """

    def __init__(
        self, count: int = 8, filename: str = "attention", loaders: EvalLoaders | None = None
    ) -> None:
        super().__init__(count, filename, loaders)

    def picture(self, encoder: nn.Module, images: Tensor) -> Image.Image:
        return attention_picture(images, cls_attention(encoder, images))
