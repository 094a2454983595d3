"""Recipes: the views of each paper, under the paper's name.

Each is a function that returns `Views`, for use as a class_path in YAML.

Deviations (all recipes): the crop's box is drawn as in torchvision (TensorFlow's sampler in SimCLR
and BYOL makes 100 attempts and refuses boxes below 0.1 of the image); every parameter is drawn per
sample and view; values stay floats between operations, where PIL rounds to bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sslzoo.checks import (
    check_at_least,
    check_choice,
    check_interval,
    check_view_kinds,
    check_whole,
)
from sslzoo.transforms.image.affine import RandomAffine
from sslzoo.transforms.image.blur import GaussianBlur, PILBlur
from sslzoo.transforms.image.color import ColorJitter, Grayscale
from sslzoo.transforms.image.color_space import (
    LAB_MEAN,
    LAB_STD,
    YCBCR_MEAN,
    YCBCR_STD,
    ColorSpace,
)
from sslzoo.transforms.image.crop import RandomResizedCrop
from sslzoo.transforms.image.elastic import RandomElastic
from sslzoo.transforms.image.layout import Op
from sslzoo.transforms.image.normalize import (
    AMDIM_CIFAR_MEAN,
    AMDIM_CIFAR_STD,
    CLIP_MEAN,
    CLIP_STD,
    GIM_MEAN,
    GIM_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    INSTDISC_CIFAR_MEAN,
    INSTDISC_CIFAR_STD,
    SWAV_STD,
    Clip,
    normalize_ops,
)
from sslzoo.transforms.image.patches import PerPatch
from sslzoo.transforms.image.resample import Interpolation
from sslzoo.transforms.image.solarize import Solarize
from sslzoo.transforms.image.translate import RandomTranslate
from sslzoo.transforms.image.views import View, Views

Numbers = Sequence[float] | None


def simclr_views(
    size: int = 224,
    strength: float = 1.0,
    blur: bool = True,
    color: bool = True,
    flip: bool = True,
    scale: tuple[float, float] = (0.08, 1.0),
    brightness: Literal["additive", "multiplicative"] = "additive",
    interpolation: Interpolation = "bicubic",
    mean: Numbers = None,
    std: Numbers = None,
    blur_kernel: int | None = None,
) -> Views:
    """SimCLR's two views.

    Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML
    2020, https://arxiv.org/abs/2002.05709; code google-research/simclr at be133b3.

    Order: crop (area 0.08 to 1, aspect 3/4 to 4/3, bicubic), flip 0.5; with probability 0.8
    brightness, contrast, saturation (each 0.8 s) and hue (0.2 s) in random order, clipped to
    [0, 1] after each; grayscale 0.2; blur 0.5 (kernel a tenth of the height, sigma 0.1 to 2);
    clip. No normalization.

    Deviations: sigma is drawn per sample, not per batch and view, so that it does not depend on the
    split of a batch; the crop is antialiased, TensorFlow's is not.

    Args:
        size: side of a view in pixels: 224, or 32 for CIFAR.
        strength: s, the color distortion strength: 1.0 for ImageNet, 0.5 for CIFAR.
        blur: whether to blur; False for CIFAR.
        color: whether to jitter and gray; False for images of one channel.
        flip: whether to flip; False for digits.
        scale: range of the crop's fraction of the image area.
        brightness: "additive" in SimCLR v1, "multiplicative" in the later code (simclrv2).
        interpolation: filter of the crop.
        mean: mean per channel, to normalize although the paper does not.
        std: standard deviation per channel.
        blur_kernel: width of the blur's kernel in pixels, see `GaussianBlur`; None: a tenth of the
            height.
    """
    check_choice("brightness", brightness, ("additive", "multiplicative"))
    _check_kernel(blur, blur_kernel)
    s = 0.8 * strength
    additive = brightness == "additive"
    ops: list[Op] = []
    if color:
        jitter = ColorJitter(s, s, s, 0.2 * strength, 0.8, "tensorflow", additive)
        ops += [jitter, Grayscale(0.2)]
    if blur:
        ops += [GaussianBlur(0.5, kernel_size=blur_kernel), Clip()]
    ops += normalize_ops(mean, std)
    crop = RandomResizedCrop(size, scale, interpolation=interpolation, flip=0.5 if flip else 0.0)
    return Views([View(crop, ops)] * 2)


def _jitter(jitter: Sequence[float]) -> ColorJitter:
    """With probability 0.8, of the strengths of brightness, contrast, saturation and hue."""
    if len(jitter) != 4:
        raise ValueError(
            "jitter must be four numbers, of brightness, contrast, saturation and hue, got "
            f"{jitter}"
        )
    brightness, contrast, saturation, hue = jitter
    return ColorJitter(brightness, contrast, saturation, hue, 0.8)


def _check_kernel(blur: bool, blur_kernel: int | None) -> None:
    if blur_kernel is not None and not blur:
        raise ValueError(f"blur_kernel must be left out with blur=False, got {blur_kernel}")


def byol_views(
    size: int = 224,
    blur: bool = True,
    mean: Numbers = IMAGENET_MEAN,
    std: Numbers = IMAGENET_STD,
    blur_kernel: int | None = None,
    solarize_threshold: float = 0.5,
) -> Views:
    """BYOL's two views, which differ in blur and solarization.

    Grill et al., Bootstrap Your Own Latent, NeurIPS 2020, https://arxiv.org/abs/2006.07733; code
    deepmind/deepmind-research byol at d8df415.

    Order: crop (area 0.08 to 1, aspect 3/4 to 4/3, bicubic), flip 0.5; with probability 0.8
    additive brightness 0.4, contrast 0.4, saturation 0.2, hue 0.1 in random order, unclipped;
    grayscale 0.2; blur 1.0 and 0.1 (kernel a tenth of the height, sigma 0.1 to 2); solarize 0 and
    0.2 at 0.5; clip to [0, 1]; normalize.

    Deviations: the crop is antialiased, TensorFlow's is not; the normalization is part of the view,
    in the official code part of the network.

    Args:
        size: side of a view in pixels.
        blur: whether to blur; False for small images.
        mean: mean per channel; None: no normalization.
        std: standard deviation per channel.
        blur_kernel: see `simclr_views`.
        solarize_threshold: pixels of at least this, in 0..1, are inverted.
    """
    _check_kernel(blur, blur_kernel)
    views = []
    for blur_p, solarize_p in ((1.0, 0.0), (0.1, 0.2)):
        jitter = ColorJitter(0.4, 0.4, 0.2, 0.1, 0.8, "tensorflow", additive=True, clip=False)
        ops: list[Op] = [jitter, Grayscale(0.2)]
        ops += [GaussianBlur(blur_p, kernel_size=blur_kernel)] if blur else []
        ops += [Solarize(solarize_p, solarize_threshold)] if solarize_p else []
        ops += [Clip(), *normalize_ops(mean, std)]
        views.append(View(RandomResizedCrop(size, interpolation="bicubic"), ops))
    return Views(views)


def instdisc_views(
    size: int = 224,
    dataset: Literal["imagenet", "cifar"] = "imagenet",
    mean: Numbers = None,
    std: Numbers = None,
) -> Views:
    """Instance discrimination's single view.

    Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR
    2018, https://arxiv.org/abs/1805.01978; code zhirongw/lemniscate.pytorch at f7cfe29.

    Order, ImageNet: crop (area 0.2 to 1, bilinear), grayscale 0.2, jitter (0.4 each) always,
    flip 0.5, normalize. CIFAR: crop (area 0.2 to 1), jitter (0.4 each) always, grayscale 0.2,
    normalize; no flip.

    Deviations: none; the flip is applied with the crop, which is equivalent.

    Args:
        size: side of the view in pixels: 224, or 32 for CIFAR.
        dataset: "imagenet" or "cifar".
        mean: mean per channel; None: the paper's for that dataset.
        std: standard deviation per channel.
    """
    check_choice("dataset", dataset, ("imagenet", "cifar"))
    photos = dataset == "imagenet"
    if mean is None and std is None:
        mean = IMAGENET_MEAN if photos else INSTDISC_CIFAR_MEAN
        std = IMAGENET_STD if photos else INSTDISC_CIFAR_STD
    color: list[Op] = [ColorJitter(0.4, 0.4, 0.4, 0.4), Grayscale(0.2)]
    ops = color[::-1] if photos else color
    crop = RandomResizedCrop(size, (0.2, 1.0), flip=0.5 if photos else 0.0)
    return Views([View(crop, [*ops, *normalize_ops(mean, std)])])


def invaspread_views(
    size: int = 32,
    mean: Numbers = INSTDISC_CIFAR_MEAN,
    std: Numbers = INSTDISC_CIFAR_STD,
) -> Views:
    """InvaSpread's two views.

    Ye et al., Unsupervised Embedding Learning via Invariant and Spreading Instance Feature, CVPR
    2019, https://arxiv.org/abs/1904.03436; code mangye16/Unsupervised_Embedding_Learning at
    29de398.

    Order: crop (area 0.2 to 1, bilinear), jitter (0.4 each) always, grayscale 0.2, flip 0.5,
    normalize.

    Deviations: none; the flip is applied with the crop, which is equivalent.

    Args:
        size: side of a view in pixels: 32 for CIFAR, 96 for STL-10.
        mean: mean per channel; None: no normalization.
        std: standard deviation per channel.
    """
    ops: list[Op] = [ColorJitter(0.4, 0.4, 0.4, 0.4), Grayscale(0.2), *normalize_ops(mean, std)]
    return Views([View(RandomResizedCrop(size, (0.2, 1.0)), ops)] * 2)


def cmc_views(
    size: int = 224,
    space: Literal["lab", "ycbcr"] = "lab",
    scale: tuple[float, float] = (0.2, 1.0),
    flip: bool = True,
    mean: Numbers = None,
    std: Numbers = None,
) -> Views:
    """CMC's two views of one crop: the lightness and the two color channels.

    Tian et al., Contrastive Multiview Coding, ECCV 2020, https://arxiv.org/abs/1906.05849; code
    HobbitLong/CMC at 7b227be.

    Order: crop (bilinear), flip 0.5, RGB to Lab (or YCbCr), normalize by the center and half-width
    of each channel's range, split into L and ab (Y and CbCr). There is no color jitter.

    Deviations: no RandAugment, which the released wider models use but the code lacks.

    Args:
        size: side of a view in pixels: 224, or 32 for CIFAR.
        space: "lab", or "ycbcr", which is slightly better in the paper.
        scale: range of the crop's fraction of the image area; (0.08, 1) in the ResNet runs.
        flip: whether to flip; False for digits.
        mean: mean per channel; None: the code's for that space.
        std: standard deviation per channel.
    """
    check_choice("space", space, ("lab", "ycbcr"))
    if mean is None and std is None:
        mean, std = (LAB_MEAN, LAB_STD) if space == "lab" else (YCBCR_MEAN, YCBCR_STD)
    crop = RandomResizedCrop(size, scale, flip=0.5 if flip else 0.0)
    return Views([View(crop, [ColorSpace(space), *normalize_ops(mean, std)])], split=(1, 2))


def moco_v1_views(
    size: int = 224, mean: Numbers = IMAGENET_MEAN, std: Numbers = IMAGENET_STD
) -> Views:
    """MoCo v1's two views.

    He et al., Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020,
    https://arxiv.org/abs/1911.05722; code facebookresearch/moco at 78b69ca.

    Order: crop (area 0.2 to 1, bilinear), grayscale 0.2, jitter (0.4 each) always, flip 0.5,
    normalize.

    Deviations: none; the flip is applied with the crop, which is equivalent.

    Args:
        size: side of a view in pixels.
        mean: mean per channel; None: no normalization.
        std: standard deviation per channel.
    """
    ops: list[Op] = [Grayscale(0.2), ColorJitter(0.4, 0.4, 0.4, 0.4), *normalize_ops(mean, std)]
    return Views([View(RandomResizedCrop(size, (0.2, 1.0)), ops)] * 2)


def moco_v2_views(
    size: int = 224,
    blur: bool = True,
    scale: tuple[float, float] = (0.2, 1.0),
    mean: Numbers = IMAGENET_MEAN,
    std: Numbers = IMAGENET_STD,
) -> Views:
    """MoCo v2's two views, also for SimSiam and, without blur, MoCo's CIFAR notebook.

    Chen et al., Improved Baselines with Momentum Contrastive Learning, 2020,
    https://arxiv.org/abs/2003.04297; code facebookresearch/moco at 78b69ca. Chen and He,
    Exploring Simple Siamese Representation Learning, CVPR 2021, https://arxiv.org/abs/2011.10566.

    Order: crop (area 0.2 to 1, bilinear); jitter (0.4, 0.4, 0.4, 0.1) with probability 0.8;
    grayscale 0.2; PIL's Gaussian blur 0.5, radius 0.1 to 2; flip 0.5; normalize.

    Deviations: none; the flip is applied with the crop, which is equivalent.

    Args:
        size: side of a view in pixels.
        blur: whether to blur; False for CIFAR.
        scale: range of the crop's fraction of the image area; (0.08, 1) in the CIFAR notebook.
        mean: mean per channel; None: no normalization.
        std: standard deviation per channel.
    """
    ops: list[Op] = [ColorJitter(0.4, 0.4, 0.4, 0.1, 0.8), Grayscale(0.2)]
    ops += [PILBlur(0.5)] if blur else []
    ops += normalize_ops(mean, std)
    return Views([View(RandomResizedCrop(size, scale), ops)] * 2)


def moco_v3_views(
    size: int = 224,
    blur: bool = True,
    scale: tuple[float, float] = (0.08, 1.0),
    mean: Numbers = IMAGENET_MEAN,
    std: Numbers = IMAGENET_STD,
) -> Views:
    """MoCo v3's two views, which differ in blur and solarization.

    Chen, Xie and He, An Empirical Study of Training Self-Supervised Vision Transformers, ICCV
    2021, https://arxiv.org/abs/2104.02057; code facebookresearch/moco-v3 at c349e6e.

    Order: crop (area 0.08 to 1, bilinear); jitter (0.4, 0.4, 0.2, 0.1) with probability 0.8;
    grayscale 0.2; PIL's Gaussian blur 1.0 and 0.1, radius 0.1 to 2; solarize 0 and 0.2 at 128;
    flip 0.5; normalize.

    Deviations: none; the flip is applied with the crop, which is equivalent.

    Args:
        size: side of a view in pixels.
        blur: whether to blur; False for small images.
        scale: range of the crop's fraction of the image area; (0.2, 1) for ResNet-50.
        mean: mean per channel; None: no normalization.
        std: standard deviation per channel.
    """
    views = []
    for blur_p, solarize_p in ((1.0, 0.0), (0.1, 0.2)):
        ops: list[Op] = [ColorJitter(0.4, 0.4, 0.2, 0.1, 0.8), Grayscale(0.2)]
        ops += [PILBlur(blur_p)] if blur else []
        ops += [Solarize(solarize_p)] if solarize_p else []
        views.append(View(RandomResizedCrop(size, scale), [*ops, *normalize_ops(mean, std)]))
    return Views(views)


def ijepa_views(
    size: int = 224,
    scale: tuple[float, float] = (0.3, 1.0),
    mean: Numbers = IMAGENET_MEAN,
    std: Numbers = IMAGENET_STD,
    flip: bool = False,
    color_strength: float = 0.0,
    blur: bool = False,
) -> Views:
    """I-JEPA's single view.

    Assran et al., Self-Supervised Learning from Images with a Joint-Embedding Predictive
    Architecture, CVPR 2023, https://arxiv.org/abs/2301.08243; code facebookresearch/ijepa at
    52c1ae9.

    Order: crop (area 0.3 to 1, bilinear), normalize. There is no flip and no color jitter, unless
    asked for: flip 0.5; jitter (0.8 s, 0.8 s, 0.8 s, 0.2 s) with probability 0.8 and grayscale 0.2;
    PIL's Gaussian blur 0.5, radius 0.1 to 2.

    Deviations: none.

    Args:
        size: side of the view in pixels.
        scale: range of the crop's fraction of the image area.
        mean: mean per channel; None: no normalization.
        std: standard deviation per channel.
        flip: whether to flip (the code's use_horizontal_flip).
        color_strength: s, at most 2.5; above 0 it jitters and grays (use_color_distortion and
            color_jitter_strength).
        blur: whether to blur (use_gaussian_blur).

    Raises:
        ValueError: for a color_strength outside [0, 2.5], where the hue's range ends.
    """
    check_interval("color_strength", color_strength, 0, 2.5)
    crop = RandomResizedCrop(size, scale, flip=0.5 if flip else 0.0)
    s, ops = 0.8 * color_strength, list[Op]()
    if color_strength:
        ops += [ColorJitter(s, s, s, 0.2 * color_strength, 0.8), Grayscale(0.2)]
    ops += [PILBlur(0.5)] if blur else []
    return Views([View(crop, [*ops, *normalize_ops(mean, std)])])


def ressl_views(
    size: int = 224,
    sizes: Sequence[int] = (224,),
    scales: Sequence[tuple[float, float]] = ((0.2, 1.0),),
    blur: bool = True,
    weak_scale: tuple[float, float] = (0.2, 1.0),
    mean: Numbers = IMAGENET_MEAN,
    std: Numbers = IMAGENET_STD,
) -> Views:
    """ReSSL's weak view, then one or more strong crops.

    Zheng et al., ReSSL: Relational Self-Supervised Learning with Weak Augmentation, NeurIPS 2021,
    https://arxiv.org/abs/2107.09282; code KyleZheng1997/ReSSL at 4d67daa.

    Order of the weak view: crop (area 0.2 to 1, bilinear), flip 0.5, normalize. Of a strong crop:
    crop; jitter (0.4, 0.4, 0.4, 0.1) with probability 0.8; grayscale 0.2; PIL's Gaussian blur 0.5,
    radius 0.1 to 2; flip 0.5; normalize. The code's five crops have sizes 224, 192, 160, 128, 96
    and scales (0.2, 1), (0.172, 0.86), (0.143, 0.715), (0.114, 0.571), (0.086, 0.429).

    Deviations: none; the flip is applied with the crop, which is equivalent.

    Args:
        size: side of the weak view in pixels.
        sizes: side in pixels per strong crop.
        scales: range of the crop's fraction of the image area per strong crop.
        blur: whether to blur; False for small images.
        weak_scale: that range of the weak view.
        mean: mean per channel; None: no normalization.
        std: standard deviation per channel.
    """
    check_view_kinds(sizes, [1] * len(sizes), scales)
    weak = View(RandomResizedCrop(size, weak_scale), normalize_ops(mean, std))
    ops: list[Op] = [ColorJitter(0.4, 0.4, 0.4, 0.1, 0.8), Grayscale(0.2)]
    ops += [PILBlur(0.5)] if blur else []
    ops += normalize_ops(mean, std)
    crops = (RandomResizedCrop(*crop) for crop in zip(sizes, scales, strict=True))
    return Views([weak, *(View(crop, ops) for crop in crops)])


def mae_views(
    size: int = 224,
    scale: tuple[float, float] = (0.2, 1.0),
    mean: Numbers = IMAGENET_MEAN,
    std: Numbers = IMAGENET_STD,
) -> Views:
    """MAE's single view.

    He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022,
    https://arxiv.org/abs/2111.06377; code facebookresearch/mae at efb2a80.

    Order: crop (area 0.2 to 1, bicubic), flip 0.5, normalize. There is no color jitter.

    Deviations: none.

    Args:
        size: side of the view in pixels.
        scale: range of the crop's fraction of the image area.
        mean: mean per channel; None: no normalization.
        std: standard deviation per channel.
    """
    crop = RandomResizedCrop(size, scale, interpolation="bicubic")
    return Views([View(crop, normalize_ops(mean, std))])


def clip_views(
    size: int = 224,
    scale: tuple[float, float] = (0.9, 1.0),
    mean: Numbers = CLIP_MEAN,
    std: Numbers = CLIP_STD,
    resize: Literal["shortest", "squash"] = "shortest",
) -> Views:
    """CLIP's single view of an image beside its text.

    Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020; code mlfoundations/open_clip at
    89fb801.

    Order: crop (area 0.9 to 1, bicubic), normalize. There is no flip and no color jitter. In
    evaluation, the shorter side is resized bicubic and the center cropped, or for SigLIP the whole
    image resized to a square.

    Deviations: none.

    Args:
        size: side of the view in pixels.
        scale: range of the crop's fraction of the image area.
        mean: mean per channel; 0.5 in SigLIP; None: no normalization.
        std: standard deviation per channel; 0.5 in SigLIP.
        resize: what evaluation resizes: the "shortest" side, before the center is cropped, or with
            "squash", as SigLIP's, both sides.
    """
    check_choice("resize", resize, ("shortest", "squash"))
    crop = RandomResizedCrop(size, scale, flip=0.0, interpolation="bicubic")
    ops = normalize_ops(mean, std)
    return Views([View(crop, ops)], whole=True, squash=resize == "squash")


def multi_crop_views(
    recipe: Literal["swav", "dino", "dinov2"] = "swav",
    sizes: Sequence[int] = (224, 96),
    counts: Sequence[int] = (2, 6),
    scales: Sequence[tuple[float, float]] = ((0.14, 1.0), (0.05, 0.14)),
    blur: bool = True,
    mean: Numbers = IMAGENET_MEAN,
    std: Numbers = None,
    large_blur: tuple[float, float] | None = None,
    gram_size: int | None = None,
    boxes: bool = False,
    strength: float = 1.0,
) -> Views:
    """SwAV's, DINO's or DINOv2's multi-crop: a few large and several small crops.

    Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments,
    NeurIPS 2020, https://arxiv.org/abs/2006.09882; code facebookresearch/swav at 06b1b7c. Caron
    et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021,
    https://arxiv.org/abs/2104.14294; code facebookresearch/dino at 7c446df. Oquab et al., DINOv2,
    2023, https://arxiv.org/abs/2304.07193; code facebookresearch/dinov2 at b8931f7.

    SwAV's order: crop (bilinear), flip 0.5, jitter (0.8, 0.8, 0.8, 0.2) with probability 0.8,
    grayscale 0.2, PIL's blur 0.5, normalize. DINO's: crop (bicubic), flip 0.5, jitter (0.4, 0.4,
    0.2, 0.1) with probability 0.8, grayscale 0.2, PIL's blur (first large crop 1.0, second 0.1,
    small 0.5), solarize the second large crop 0.2 at 128, normalize. DINO's published defaults:
    counts (2, 8), scales ((0.4, 1), (0.05, 0.4)). DINOv2's order is DINO's with torchvision's blur
    (kernel 9, sigma 0.1 to 2); counts (2, 8), scales ((0.32, 1), (0.05, 0.32)), small crops of 96
    pixels, or 98 with patches of 14.

    DINOv2's code blurs with the probability 1 - p where p was meant, so that the large crops were
    blurred with 0 and 0.9, not 1 and 0.1, in the training of the released models (reported as its
    pull request 411).

    Deviations: none.

    Args:
        recipe: "swav", "dino" or "dinov2".
        sizes: side in pixels per group of crops.
        counts: number of crops per group; 2 in DINO's first group.
        scales: range of the crop's fraction of the image area per group.
        blur: whether to blur; False for small images.
        mean: mean per channel.
        std: standard deviation per channel; None: the recipe's (SwAV's official red is 0.228).
        large_blur: probabilities of the blur of DINO's or DINOv2's two large crops; None: the
            code's, (1, 0.1) in DINO and (0, 0.9) in DINOv2, where (1, 0.1) was meant.
        gram_size: side in pixels of two more views for Gram anchoring (DINOv2): the boxes of the
            large crops at another size, normalized only; None: no such views.

        boxes: whether batches get the crops' boxes, see `Views`.
        strength: factor of the jitter; 0.5 for CIFAR, as SimCLR's.

    Raises:
        ValueError: the sizes, counts and scales do not fit, DINO and DINOv2 have other than two
            large crops, or an argument is not the recipe's.
    """
    check_choice("recipe", recipe, ("swav", "dino", "dinov2"))
    check_view_kinds(sizes, counts, scales)
    check_at_least("strength", strength, 0)
    dino = recipe != "swav"
    if dino and counts[0] != 2:
        raise ValueError(f"counts must begin with 2 for DINO and DINOv2, got {counts}")
    if large_blur is not None and not (dino and blur):
        raise ValueError(
            f"large_blur must be None for SwAV and without blur, got {large_blur} for {recipe}"
        )
    if gram_size is not None and recipe != "dinov2":
        raise ValueError(f"gram_size must be None except for dinov2, got {gram_size} for {recipe}")
    if large_blur is not None and (
        len(large_blur) != 2 or not all(0 <= probability <= 1 for probability in large_blur)
    ):
        raise ValueError(f"large_blur must be two probabilities in [0, 1], got {large_blur}")
    if gram_size is not None:
        check_whole("gram_size", gram_size, 1)
    blurs = large_blur or ((0.0, 0.9) if recipe == "dinov2" else (1.0, 0.1))
    if mean is not None and std is None:
        std = IMAGENET_STD if dino else SWAV_STD
    views = []
    for group, (size, count, scale) in enumerate(zip(sizes, counts, scales, strict=True)):
        interpolation: Interpolation = "bicubic" if dino else "bilinear"
        crop = RandomResizedCrop(size, scale, interpolation=interpolation)
        amounts = (0.4, 0.4, 0.2, 0.1) if dino else (0.8, 0.8, 0.8, 0.2)
        bright, contrast, saturation, hue = (strength * amount for amount in amounts)
        jitter = ColorJitter(bright, contrast, saturation, hue, 0.8)

        def view(
            blur_p: float, *last: Op, crop: RandomResizedCrop = crop, jitter: Op = jitter
        ) -> View:
            ops: list[Op] = [jitter, Grayscale(0.2)]
            if blur and recipe == "dinov2":
                ops += [GaussianBlur(blur_p, kernel_size=9, padding="reflect")]
            elif blur:
                ops += [PILBlur(blur_p)]
            return View(crop, [*ops, *last, *normalize_ops(mean, std)])

        if dino and group == 0:
            views += [view(blurs[0]), view(blurs[1], Solarize(0.2))]
        else:
            views += [view(0.5)] * count  # one object, so that they are made together
    if gram_size is not None:
        crop = RandomResizedCrop(gram_size, scales[0], interpolation="bicubic")
        views += [View(crop, normalize_ops(mean, std), same_box_as=large) for large in range(2)]
    return Views(views, boxes=boxes)


def vicregl_views(
    sizes: Sequence[int] = (224, 96),
    counts: Sequence[int] = (2, 6),
    scales: Sequence[tuple[float, float]] = ((0.4, 1.0), (0.08, 0.4)),
    blur: bool = True,
    mean: Numbers = IMAGENET_MEAN,
    std: Numbers = SWAV_STD,
) -> Views:
    """VICRegL's large and small crops with their boxes; colors alternate between BYOL's two views.

    Bardes et al., VICRegL: Self-Supervised Learning of Local Visual Features, NeurIPS 2022,
    https://arxiv.org/abs/2210.01571; code facebookresearch/VICRegL at 803ae4c.

    Order: crop (bicubic), flip 0.5, jitter (0.4, 0.4, 0.2, 0.1) with probability 0.8, grayscale
    0.2, PIL's blur (crops 0, 2, ... of a group: 1.0, crops 1, 3, ...: 0.1; radius 0.1 to 2),
    solarize crops 1, 3, ... 0.2 at 128, normalize. The defaults are those of the ConvNeXts; the
    ResNet-50 has sizes (224), counts (2) and scales ((0.08, 1)).

    Args:
        sizes: side in pixels per group of crops.
        counts: number of crops per group.
        scales: range of the crop's fraction of the image area per group.
        blur: whether to blur; False for small images.
        mean: mean per channel; None: no normalization.
        std: standard deviation per channel.
    """
    check_view_kinds(sizes, counts, scales)
    views: list[View] = []
    for size, count, scale in zip(sizes, counts, scales, strict=True):
        crop = RandomResizedCrop(size, scale, interpolation="bicubic")
        for number in range(count):
            blur_p, solarize_p = ((1.0, 0.0), (0.1, 0.2))[number % 2]
            ops: list[Op] = [ColorJitter(0.4, 0.4, 0.2, 0.1, 0.8), Grayscale(0.2)]
            ops += [PILBlur(blur_p)] if blur else []
            ops += [Solarize(solarize_p)] if solarize_p else []
            views.append(View(crop, [*ops, *normalize_ops(mean, std)]))
    return Views(views, boxes=True)


def msn_views(
    sizes: Sequence[int] = (224, 96),
    counts: Sequence[int] = (2, 10),
    scales: Sequence[tuple[float, float]] = ((0.3, 1.0), (0.05, 0.3)),
    strength: float = 0.5,
    blur: bool = True,
    mean: Numbers = IMAGENET_MEAN,
    std: Numbers = IMAGENET_STD,
) -> Views:
    """MSN's random views, of which the first is the target, and its focal views.

    Assran et al., Masked Siamese Networks for Label-Efficient Learning, ECCV 2022,
    https://arxiv.org/abs/2204.07141; code facebookresearch/msn at 4388dc1.

    Order: crop (bilinear), flip 0.5, jitter (0.8 s, 0.8 s, 0.8 s, 0.2 s) with probability 0.8,
    grayscale 0.2, PIL's blur 0.5 (radius 0.1 to 2), normalize.

    Deviations: none.

    Args:
        sizes: side in pixels of random and focal views.
        counts: number of each; the random ones include the target.
        scales: range of the crop's fraction of the image area of each.
        strength: s, the color distortion strength.
        blur: whether to blur; False for small images.
        mean: mean per channel; None: no normalization.
        std: standard deviation per channel.
    """
    check_view_kinds(sizes, counts, scales)
    s = 0.8 * strength
    ops: list[Op] = [ColorJitter(s, s, s, 0.2 * strength, 0.8), Grayscale(0.2)]
    ops += [PILBlur(0.5)] if blur else []
    ops += normalize_ops(mean, std)
    views: list[View] = []
    for size, count, scale in zip(sizes, counts, scales, strict=True):
        views += [View(RandomResizedCrop(size, scale), ops)] * count
    return Views(views)


def lejepa_views(
    sizes: Sequence[int] = (224, 98),
    counts: Sequence[int] = (2, 6),
    scales: Sequence[tuple[float, float]] = ((0.3, 1.0), (0.05, 0.3)),
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1),
    blur: bool = True,
    mean: Numbers = IMAGENET_MEAN,
    std: Numbers = IMAGENET_STD,
    blur_kernel: int | None = 7,
) -> Views:
    """LeJEPA's views: global and local crops, all with the same operations.

    Balestriero and LeCun, LeJEPA: Provable and Scalable Self-Supervised Learning Without the
    Heuristics, 2025, https://arxiv.org/abs/2511.08544; code rbalestr-lab/lejepa at eddffdd, README
    (ImageNet) and MINIMAL.md (Imagenette: four views of 128 pixels, area 0.08 to 1, jitter (0.8,
    0.8, 0.8, 0.2)).

    Order: crop (bilinear), flip 0.5, jitter with probability 0.8, grayscale 0.2, Gaussian blur 0.5
    (sigma 0.1 to 2), solarize 0.2 at 128, normalize.

    Deviations: none; the blur's kernel of 7 pixels is that of MINIMAL.md, the README names none.

    Args:
        sizes: side in pixels per group of crops.
        counts: number of crops per group.
        scales: range of the crop's fraction of the image area per group.
        jitter: half-widths of brightness, contrast, saturation and hue, see `ColorJitter`.
        blur: whether to blur; False for small images.
        mean: mean per channel; None: no normalization.
        std: standard deviation per channel.
        blur_kernel: width of the blur's kernel in pixels, see `GaussianBlur`.
    """
    check_view_kinds(sizes, counts, scales)
    ops: list[Op] = [_jitter(jitter), Grayscale(0.2)]
    ops += [GaussianBlur(0.5, kernel_size=blur_kernel, padding="reflect")] if blur else []
    ops += [Solarize(0.2), *normalize_ops(mean, std)]
    kinds = zip(sizes, counts, scales, strict=True)
    groups = [[View(RandomResizedCrop(size, scale), ops)] * n for size, n, scale in kinds]
    return Views([view for group in groups for view in group])


def w_mse_views(
    size: int = 32,
    count: int = 2,
    scale: tuple[float, float] = (0.2, 1.0),
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1),
    gray: float = 0.1,
    mean: Numbers = IMAGENET_MEAN,
    std: Numbers = IMAGENET_STD,
) -> Views:
    """W-MSE's two or four views, without blur.

    Ermolov et al., Whitening for Self-Supervised Representation Learning, ICML 2021,
    https://arxiv.org/abs/2007.06346; code htdt/self-supervised at d9662c8.

    Order: crop (area 0.2 to 1, bicubic), flip 0.5, jitter (0.4, 0.4, 0.4, 0.1) with probability
    0.8, grayscale 0.1, normalize.

    Deviations: the code jitters and grays before it crops, so that contrast is relative to the
    mean of the whole image.

    Args:
        size: side of a view in pixels.
        count: number of views; 2 or 4 in the paper.
        scale: range of the crop's fraction of the image area; (0.08, 1) for ImageNet-100.
        jitter: half-widths of brightness, contrast, saturation and hue, see `ColorJitter`; (0.8,
            0.8, 0.8, 0.2) for ImageNet-100.
        gray: probability of grayscale; 0.2 for ImageNet-100.
        mean: mean per channel; None: no normalization.
        std: standard deviation per channel.
    """
    check_at_least("count", count, 2)
    ops: list[Op] = [_jitter(jitter), Grayscale(gray), *normalize_ops(mean, std)]
    return Views([View(RandomResizedCrop(size, scale, interpolation="bicubic"), ops)] * count)


def dim_views(
    size: int = 32,
    flip: bool = False,
    mean: Numbers = (0.5, 0.5, 0.5),
    std: Numbers = (0.5, 0.5, 0.5),
) -> Views:
    """Deep InfoMax's single view: the resized image.

    Hjelm et al., Learning Deep Representations by Mutual Information Estimation and Maximization,
    ICLR 2019, https://arxiv.org/abs/1808.06670; code rdevon/DIM at bac4765.

    Order: resize, flip 0.5 (STL-10 only), normalize.

    Deviations: none for square images, as in the code; others are cropped to the central square.

    Args:
        size: side of the view in pixels.
        flip: whether to flip; True for STL-10, False for CIFAR.
        mean: mean per channel; None: no normalization.
        std: standard deviation per channel.
    """
    crop = RandomResizedCrop(size, (1.0, 1.0), (1.0, 1.0), flip=0.5 if flip else 0.0)
    return Views([View(crop, normalize_ops(mean, std))])


def amdim_views(
    size: int = 128,
    dataset: Literal["imagenet", "cifar"] = "imagenet",
    mean: Numbers = None,
    std: Numbers = None,
) -> Views:
    """AMDIM's two views, which share their flip.

    Bachman, Hjelm and Buchwalter, Learning Representations by Maximizing Mutual Information
    Across Views, NeurIPS 2019, https://arxiv.org/abs/1906.00910; code Philip-Bachman/
    amdim-public at 8754ae1.

    Order, ImageNet: shared flip 0.5, crop (area 0.3 to 1, aspect 0.7 to 1.4, bicubic),
    jitter (0.4, 0.4, 0.4, 0.1) with probability 0.8, grayscale 0.25, normalize. CIFAR: shared
    flip 0.5, translation of up to 4 pixels with reflection padding with probability 0.8, jitter
    (0.4, 0.4, 0.4, 0.2) with probability 0.8, grayscale 0.25, normalize.

    Deviations: none; the flip is applied with the crop, which is equivalent.

    Args:
        size: side of a view in pixels: 128, 64 for STL-10, 32 for CIFAR.
        dataset: "imagenet" or "cifar".
        mean: mean per channel; None: the code's for that dataset.
        std: standard deviation per channel.
    """
    check_choice("dataset", dataset, ("imagenet", "cifar"))
    photos = dataset == "imagenet"
    if mean is None and std is None:
        mean = IMAGENET_MEAN if photos else AMDIM_CIFAR_MEAN
        std = IMAGENET_STD if photos else AMDIM_CIFAR_STD
    hue = 0.1 if photos else 0.2
    ops: list[Op] = [] if photos else [RandomTranslate(4, 0.8)]
    ops += [ColorJitter(0.4, 0.4, 0.4, hue, 0.8), Grayscale(0.25), *normalize_ops(mean, std)]
    if photos:
        crop = RandomResizedCrop(size, (0.3, 1.0), (0.7, 1.4), "bicubic", flip=0.0)
    else:
        crop = RandomResizedCrop(size, (1.0, 1.0), (1.0, 1.0), flip=0.0)
    return Views([View(crop, ops)] * 2, shared_flip=0.5)


def cpc_views(
    size: int = 64,
    scale: tuple[float, float] = (4 / 9, 4 / 9),
    ratio: tuple[float, float] = (1.0, 1.0),
    gray: bool = True,
    patch: int = 16,
    stride: int = 8,
    per_patch: bool = False,
    mean: Numbers = GIM_MEAN,
    std: Numbers = GIM_STD,
) -> Views:
    """CPC's single view, which the backbone cuts into patches (`backbones.PatchGrid`).

    Van den Oord, Li and Vinyals, Representation Learning with Contrastive Predictive Coding, 2018,
    https://arxiv.org/abs/1807.03748; code loeweX/Greedy_InfoMax at 22d17e4. Henaff et al.,
    Data-Efficient Image Recognition with Contrastive Predictive Coding, ICML 2020,
    https://arxiv.org/abs/1905.09272 (`per_patch`).

    Order: crop (64 of 96 pixels, not resized), flip 0.5, grayscale always, normalize. Per patch:
    crop, flip 0.5; then for each patch a translation of up to an eighth of its side, a rotation and
    a shear of up to 10 degrees, jitter (0.4, 0.4, 0.4, 0.1) with probability 0.8, grayscale 0.25,
    normalize; the patches are laid out side by side.

    Deviations: gray images have three channels, one in the code. The operations above replace the
    paper's for version 2 (AutoAugment's, elastic deformation).

    Args:
        size: side of the view in pixels, before it is cut into patches.
        scale: range of the crop's fraction of the image area; the default is 64 of 96 pixels.
        ratio: range of the crop's width / height.
        gray: whether to convert to gray; False with `per_patch`, which jitters colors.
        patch: side of a patch in pixels, for `per_patch`.
        stride: pixels from one patch to the next, for `per_patch`.
        per_patch: whether to augment each patch independently (version 2).
        mean: mean per channel; None: no normalization.
        std: standard deviation per channel.
    """
    if gray and per_patch:
        raise ValueError("gray must be False with per_patch, which changes colors, got True")
    ops: list[Op] = [ColorSpace("gray")] if gray else []
    if per_patch:
        each: list[Op] = [
            RandomTranslate(patch // 8),
            RandomAffine(10.0, 10.0),
            ColorJitter(0.4, 0.4, 0.4, 0.1, 0.8),
            Grayscale(0.25),
        ]
        ops.append(PerPatch(each, patch, stride))
    ops += normalize_ops(mean, std)
    return Views([View(RandomResizedCrop(size, scale, ratio), ops)])


def digit_views(
    size: int = 28,
    scale: tuple[float, float] = (0.3, 1.0),
    degrees: float = 20.0,
    shear: float = 20.0,
    elastic: float = 0.0,
    mean: Numbers = None,
    std: Numbers = None,
) -> Views:
    """Two views of a white digit on black: SimCLR's crop, rotation, shear and distortion.

    Order: crop (bilinear), rotation, shear, elastic distortion. There is no flip, since a mirrored
    digit is not one.

    Args:
        size: side of a view in pixels.
        scale: range of the crop's fraction of the image area.
        degrees: the rotation is uniform in [-degrees, degrees].
        shear: the shear angle is uniform in [-shear, shear] degrees.
        elastic: strength of `RandomElastic`; 0: no distortion.
        mean: mean per channel; None: no normalization.
        std: standard deviation per channel.
    """
    ops: list[Op] = [RandomAffine(degrees, shear)]
    if elastic:
        ops.append(RandomElastic(elastic))
    ops += normalize_ops(mean, std)
    return Views([View(RandomResizedCrop(size, scale, flip=0.0), ops)] * 2)
