"""Official: the checkpoints that the methods' authors released, as entries.

Names, addresses, scores and hashes are those of the authors' repositories, at the commits that
`source` names. No file was downloaded to write this: where nothing but the saving code tells what
is in a file, the note says "unverified". Converters are proven on checkpoints made from the
layouts that the official classes have.
"""

from __future__ import annotations

import os
from typing import Any

from sslzoo.transforms.color_space import LAB_MEAN, LAB_STD
from sslzoo.transforms.normalize import IMAGENET_MEAN, IMAGENET_STD, SWAV_STD
from sslzoo.zoo.card import Card

_FB = "https://dl.fbaipublicfiles.com"
_LINEAR = "linear classifier on frozen features, ImageNet validation, reported by the authors"
_KNN = "weighted kNN, k 20 (DINO) or 200 (InstDisc), ImageNet validation, reported by the authors"
_NO_HASH = "no published hash"
_NC = "CC-BY-NC-4.0"


def _view(std: tuple[float, ...] = IMAGENET_STD, **more: Any) -> dict[str, Any]:
    normal = {"mean": list(IMAGENET_MEAN), "std": list(std)}
    return {"range": [0.0, 1.0], "size": 224, "resize": 256, **normal, **more}


_BICUBIC = _view(interpolation="bicubic")
_TENSORFLOW = {"range": [0.0, 1.0], "size": 224, "fraction": 0.875, "interpolation": "bicubic"}


def _timm(name: str, options: dict[str, Any] | None = None, **args: Any) -> dict[str, Any]:
    init = {"name": name, **args, **({"options": options} if options else {})}
    return {"class_path": "sslzoo.backbones.timm_backbone", "init_args": init}


_RESNET50 = _timm("resnet50")


def _scaled(**args: Any) -> dict[str, Any]:
    return {"class_path": "sslzoo.backbones.scaled_resnet", "init_args": args}


def _card(
    name: str,
    method: str,
    url: str,
    layout: str,
    source: str,
    licence: str,
    score: float | None,
    epochs: int | None,
    backbone: dict[str, Any] = _RESNET50,
    num_features: int = 2048,
    view: dict[str, Any] | None = None,
    knn: float | None = None,
    note: str = "",
    sha256: str | None = None,
    md5: str | None = None,
    data: str = "ImageNet-1k",
) -> Card:
    """An entry; `url` may be the file's name alone, for one fetched by hand."""
    scores = {"linear_top1": score, "knn_top1": knn}
    notes = [note] if note else []
    if sha256 is None and md5 is None:
        notes.append(_NO_HASH)
    if "://" not in url:
        notes.append("to be fetched by hand: load(..., file=PATH)")
    return Card(
        name=name,
        file=os.path.basename(url),
        method=method,
        backbone=backbone,
        num_features=num_features,
        data=data,
        preprocessing=_view() if view is None else view,
        licence={"code": licence, "weights": licence},
        sha256=sha256,
        md5=md5,
        epochs=epochs,
        protocol=" | ".join(
            [text for text, value in ((_LINEAR, score), (_KNN, knn)) if value is not None]
        )
        or None,
        score={key: value for key, value in scores.items() if value is not None},
        urls=[url] if "://" in url else [],
        layout=layout,
        source=source,
        note="; ".join(notes) or None,
    )


def _moco() -> list[Card]:
    at = f"{_FB}/moco/moco_checkpoints"
    source = "facebookresearch/moco 7397dfe"
    runs = [("v1", 200, 0.606, "b251726a"), ("v2", 200, 0.677, "59fd9945")]
    runs.append(("v2", 800, 0.711, "a04e12f8"))
    return [
        _card(
            f"moco_{v}-resnet50-imagenet-{n}ep",
            "sslzoo.methods.MoCo",
            f"{at}/moco_{v}_{n}ep/moco_{v}_{n}ep_pretrain.pth.tar",
            "moco",
            source,
            _NC,
            score,
            n,
            md5=md5,
        )
        for v, n, score, md5 in runs
    ]


def _moco_v3() -> list[Card]:
    at, source, method = f"{_FB}/moco-v3", "facebookresearch/moco-v3 c349e6e", "MoCo v3"
    small = _timm("vit_small_patch16_224", {"num_heads": 12})
    nets: list[tuple[str, str, int, float, dict[str, Any], int]] = [
        ("resnet50", "r-50", 100, 0.689, _RESNET50, 2048),
        ("resnet50", "r-50", 300, 0.728, _RESNET50, 2048),
        ("resnet50", "r-50", 1000, 0.746, _RESNET50, 2048),
        ("vit_small", "vit-s", 300, 0.732, small, 384),
        ("vit_base", "vit-b", 300, 0.767, _timm("vit_base_patch16_224"), 768),
    ]
    return [
        _card(
            f"moco_v3-{net}-imagenet-{n}ep",
            method,
            f"{at}/{short}-{n}ep/{short}-{n}ep.pth.tar",
            "moco_v3",
            source,
            _NC,
            score,
            n,
            backbone,
            width,
        )
        for net, short, n, score, backbone, width in nets
    ]


def _swav() -> list[Card]:
    at, source, view = f"{_FB}/deepcluster", "facebookresearch/swav 06b1b7c", _view(SWAV_STD)
    runs = [
        ("swav-resnet50-imagenet-800ep", "swav_800ep", 800, 0.753),
        ("swav-resnet50-imagenet-400ep", "swav_400ep", 400, 0.746),
        ("swav-resnet50-imagenet-200ep", "swav_200ep", 200, 0.739),
        ("swav-resnet50-imagenet-100ep", "swav_100ep", 100, 0.721),
        ("swav-resnet50-imagenet-200ep-bs256", "swav_200ep_bs256", 200, 0.727),
        ("swav-resnet50-imagenet-400ep-bs256", "swav_400ep_bs256", 400, 0.743),
        ("swav-resnet50-imagenet-400ep-2x224", "swav_400ep_2x224", 400, 0.701),
        ("swav-resnet50w2-imagenet-400ep", "swav_RN50w2_400ep", 400, 0.773),
        ("deepcluster_v2-resnet50-imagenet-800ep", "deepclusterv2_800ep", 800, 0.752),
        ("deepcluster_v2-resnet50-imagenet-400ep", "deepclusterv2_400ep", 400, 0.743),
        ("deepcluster_v2-resnet50-imagenet-400ep-2x224", "deepclusterv2_400ep_2x224", 400, 0.702),
    ]
    wide = "sizes of the heads, which are left out, unverified"
    return [
        _card(
            name,
            "SwAV" if name.startswith("swav") else "DeepCluster-v2",
            f"{at}/{file}_pretrain.pth.tar",
            "swav",
            source,
            _NC,
            score,
            epochs,
            _scaled(width=2) if "w2" in name else _RESNET50,
            4096 if "w2" in name else 2048,
            view,
            note=wide if "w2" in name else "",
        )
        for name, file, epochs, score in runs
    ]


def _dino() -> list[Card]:
    at, source = f"{_FB}/dino", "facebookresearch/dino 7c446df"
    small, base = "vit_small_patch{}_224", "vit_base_patch{}_224"
    nets: list[tuple[str, str, float, float, dict[str, Any], int, int]] = [
        ("vits16", "deitsmall16", 0.770, 0.745, _timm(small.format(16)), 384, 800),
        ("vits8", "deitsmall8", 0.797, 0.783, _timm(small.format(8)), 384, 800),
        ("vitb16", "vitbase16", 0.782, 0.761, _timm(base.format(16)), 768, 400),
        ("vitb8", "vitbase8", 0.801, 0.774, _timm(base.format(8)), 768, 300),
        ("resnet50", "resnet50", 0.753, 0.675, _RESNET50, 2048, 800),
    ]
    cards = []
    for net, file, linear, knn, backbone, width, epochs in nets:
        about: dict[str, Any] = {
            "source": source,
            "licence": "Apache-2.0",
            "score": linear,
            "epochs": epochs,
            "backbone": backbone,
            "num_features": width,
            "view": _BICUBIC,
            "knn": knn,
        }
        stem = f"{at}/dino_{file}_pretrain/dino_{file}_pretrain"
        cards.append(_card(f"dino-{net}-imagenet", "DINO", f"{stem}.pth", "bare", **about))
        if net in ("vits16", "vitb16", "resnet50"):
            cards.append(
                _card(
                    f"dino-{net}-imagenet-teacher",
                    "DINO",
                    f"{stem}_full_checkpoint.pth",
                    "dino_teacher",
                    **about,
                    note="out_dim and head of the file unverified; they are left out",
                )
            )
    return cards


def _masked() -> list[Card]:
    mae, source = f"{_FB}/mae/pretrain/mae_pretrain_vit", "facebookresearch/mae efb2a80"
    inferred = "that the file has no decoder is inferred, unverified; one would be left out"
    huge = _timm(
        "vit_huge_patch14_224", {"class_token": False, "global_pool": "avg", "fc_norm": False}
    )
    return [
        _card(
            "mae-vit_base-imagenet",
            "MAE",
            f"{mae}_base.pth",
            "mae",
            source,
            _NC,
            0.680,
            1600,
            _timm("vit_base_patch16_224"),
            768,
            _BICUBIC,
            note=inferred,
            md5="8cad7c",
        ),
        _card(
            "mae-vit_large-imagenet",
            "MAE",
            f"{mae}_large.pth",
            "mae",
            source,
            _NC,
            0.758,
            1600,
            _timm("vit_large_patch16_224"),
            1024,
            _BICUBIC,
            note=inferred,
            md5="b8b06e",
        ),
        _card(
            "ijepa-vit_huge14-imagenet",
            "I-JEPA",
            f"{_FB}/ijepa/IN1K-vit.h.14-300e.pth.tar",
            "ijepa",
            "facebookresearch/ijepa 52c1ae9",
            _NC,
            0.793,
            300,
            huge,
            1280,
            _BICUBIC,
            note="the target encoder; features are the mean of the patches; interpolation of the "
            "evaluation unverified",
        ),
        _card(
            "ibot-vit_small-imagenet",
            "iBOT",
            "ibot_vits_16_teacher.pth",
            "ibot",
            "bytedance/ibot da316d8",
            "Apache-2.0",
            0.770,
            800,
            _timm("vit_small_patch16_224"),
            384,
            _BICUBIC,
            0.745,
            note="the README's `backbone (t)` on Google Drive; layout unverified",
        ),
        _card(
            "ibot-vit_base-imagenet",
            "iBOT",
            "ibot_vitb_16_teacher.pth",
            "ibot",
            "bytedance/ibot da316d8",
            "Apache-2.0",
            0.795,
            400,
            _timm("vit_base_patch16_224"),
            768,
            _BICUBIC,
            0.771,
            note="the README's `backbone (t)` on Google Drive; layout unverified",
        ),
    ]


def _siamese() -> list[Card]:
    simsiam, barlow = f"{_FB}/simsiam/models", f"{_FB}/barlowtwins/ljng"
    vicreg = f"{_FB}/vicreg"
    sources = {
        "simsiam": "facebookresearch/simsiam a7bc177",
        "barlow": "facebookresearch/barlowtwins 8e8d284",
        "vicreg": "facebookresearch/vicreg 4e12602",
    }
    either = "MIT (earlier commits: CC-BY-NC-4.0)"
    return [
        _card(
            "simsiam-resnet50-imagenet-100ep",
            "SimSiam",
            f"{simsiam}/100ep/pretrain/checkpoint_0099.pth.tar",
            "simsiam",
            sources["simsiam"],
            _NC,
            0.681,
            100,
        ),
        _card(
            "simsiam-resnet50-imagenet-100ep-bs256",
            "SimSiam",
            f"{simsiam}/100ep-256bs/pretrain/checkpoint_0099.pth.tar",
            "simsiam",
            sources["simsiam"],
            _NC,
            None,
            100,
        ),
        _card(
            "barlow-resnet50-imagenet-1000ep",
            "Barlow Twins",
            f"{barlow}/resnet50.pth",
            "bare",
            sources["barlow"],
            either,
            0.732,
            1000,
            note="score: the paper's",
        ),
        _card(
            "barlow-resnet50-imagenet-1000ep-full",
            "Barlow Twins",
            f"{barlow}/checkpoint.pth",
            "barlow_vicreg",
            sources["barlow"],
            either,
            0.732,
            1000,
            note="score: the paper's",
        ),
        _card(
            "barlow-resnet50-imagenet-1000ep-bs2048",
            "Barlow Twins",
            f"{_FB}/barlowtwins/ep1000_bs2048_lrw0.2_lrb0.0048_lambd0.0051/resnet50.pth",
            "bare",
            sources["barlow"],
            either,
            None,
            1000,
            note="of the run only its folder's name is known",
        ),
        _card(
            "vicreg-resnet50-imagenet-1000ep",
            "VICReg",
            f"{vicreg}/resnet50.pth",
            "bare",
            sources["vicreg"],
            "MIT",
            0.732,
            1000,
        ),
        _card(
            "vicreg-resnet50-imagenet-1000ep-full",
            "VICReg",
            f"{vicreg}/resnet50_fullckpt.pth",
            "barlow_vicreg",
            sources["vicreg"],
            "MIT",
            0.732,
            1000,
        ),
        _card(
            "byol-resnet50-imagenet-1000ep",
            "sslzoo.methods.BYOL",
            "https://storage.googleapis.com/deepmind-byol/checkpoints/pretrain_res50x1.pkl",
            "byol",
            "deepmind/deepmind-research d8df415",
            "Apache-2.0",
            0.743,
            1000,
            _scaled(padding="same"),
            2048,
            {**_TENSORFLOW, **_NORMAL},
            note="the online network; padding is TensorFlow's SAME (asymmetric), so torchvision's "
            "ResNet-50 with these numbers gives other features; how dill wrote its containers is "
            "unverified; score: the paper's; licence: the repository's",
        ),
    ]


_NORMAL = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}


def _contrastive() -> list[Card]:
    lemniscate = (
        "https://frontiers.blob.core.windows.net/pretraining/checkpoints/pil_pretrained_models/"
        "lemniscate/lemniscate"
    )
    unknown = "not stated"
    simclr = "google-research/simclr 383d414"
    cards = [
        _card(
            f"instdisc-resnet{depth}-imagenet",
            "sslzoo.methods.InstDisc",
            f"{lemniscate}_resnet{depth}.pth",
            "instdisc",
            "zhirongw/lemniscate.pytorch f7cfe29",
            unknown,
            None,
            200,
            _timm(f"resnet{depth}"),
            width,
            knn=knn,
        )
        for depth, width, knn in ((18, 512, 0.410), (50, 2048, 0.468))
    ]
    cards.append(
        _card(
            "instdisc-resnet50-imagenet-update",
            "sslzoo.methods.InstDisc",
            f"{lemniscate}_resnet50_update.pth",
            "instdisc",
            "zhirongw/lemniscate.pytorch f7cfe29",
            unknown,
            0.585,
            None,
            note="the updated model: softmax cross-entropy, 65536 negatives; epochs not stated",
        )
    )
    for version, sk, score, folder in (
        ("v1", False, 0.691, "simclrv1/pretrain/1x"),
        ("v2", False, 0.717, "simclrv2/pretrained/r50_1x_sk0"),
        ("v2", True, 0.746, "simclrv2/pretrained/r50_1x_sk1"),
    ):
        backbone = {
            "class_path": "sslzoo.backbones.simclr_v2_resnet",
            "init_args": {"depth": 50, "sk_ratio": 0.0625 if sk else 0.0},
        }
        cards.append(
            _card(
                f"simclr_{version}-resnet50{'_sk' if sk else ''}-imagenet",
                "sslzoo.methods.SimCLR",
                "model.ckpt",
                "simclr",
                simclr,
                "Apache-2.0",
                score,
                1000 if version == "v1" else 800,
                backbone,
                2048,
                _TENSORFLOW,
                note=f"gs://simclr-checkpoints/{folder}; file=FOLDER/model.ckpt-N, needs the "
                "`convert` extra; folder unverified",
            )
        )
    cards += _cmc()
    cards.append(
        _card(
            "invaspread-resnet18-cifar10",
            "sslzoo.methods.InvaSpread",
            "ckpt.t7",
            "invaspread",
            "mangye16/Unsupervised_Embedding_Learning 29de398",
            unknown,
            None,
            200,
            {
                "class_path": "sslzoo.backbones.cifar_resnet",
                "init_args": {"name": "resnet18"},
            },
            512,
            {"range": [0.0, 1.0], "size": 32, **_CIFAR},
            note="none is released: this is the layout of what that code saves",
            data="CIFAR-10",
        )
    )
    return cards


def _cmc() -> list[Card]:
    lab = _view(mean=list(LAB_MEAN), space="lab") | {"std": list(LAB_STD)}
    folder = "the Dropbox folder of the README, whose file names are unverified"
    alexnet = {"class_path": "sslzoo.backbones.half_alexnet"}
    nets: list[tuple[str, str, str, dict[str, Any], int, int | None, str]] = [
        (f"resnet50{v}", "ckpt.pth", "cmc", _scaled(width=w, stem_dim=64), int(2048 * w), 240, "")
        for v, w in (("v1", 0.5), ("v2", 1.0), ("v3", 2.0))
    ]
    fifth = "; features are fc7's, the authors' classifier reads the towers' `forward_map`"
    nets.append(("alexnet", "CMC_alexnet.pth", "cmc_alexnet", alexnet, 2048, None, fifth))
    cards = []
    for name, file, layout, tower, width, epochs, more in nets:
        towers = [
            {**tower, "init_args": {**tower.get("init_args", {}), "in_chans": n}} for n in (1, 2)
        ]
        net = {
            "class_path": "sslzoo.backbones.Towers",
            "init_args": {"towers": towers, "channels": [1, 2]},
        }
        cards.append(
            _card(
                f"cmc-{name}-imagenet",
                "sslzoo.methods.CMC",
                file,
                layout,
                "HobbitLong/CMC 7b227be",
                "not stated",
                None,
                epochs,
                net,
                2 * width,
                lab,
                note=folder + more,
            )
        )
    return cards


def _cpc_audio() -> Card:
    wave = {"width": 256, "paddings": [3, 2, 1, 1, 1], "norm": "channel"}
    lstm = {"in_features": 256, "out_features": 256, "cell": "lstm"}
    return Card(
        name="cpc-lstm-librilight60k",
        file="60k_epoch4-d0f474de.pt",
        method="sslzoo.methods.CPC",
        backbone={
            "class_path": "sslzoo.backbones.SequenceEncoder",
            "init_args": {
                "encoder": {"class_path": "sslzoo.backbones.WaveEncoder", "init_args": wave},
                "context": {"class_path": "sslzoo.heads.Recurrent", "init_args": lstm},
                "pool": "last",
            },
        },
        num_features=256,
        data="Libri-Light, 60k hours",
        preprocessing={
            "kind": "waveform",
            "rate": 16000,
            "transform": {"class_path": "sslzoo.transforms.Waveform"},
        },
        licence={"code": "MIT", "weights": "MIT"},
        urls=[f"{_FB}/librilight/CPC_checkpoints/60k_epoch4-d0f474de.pt"],
        layout="cpc_audio",
        source="facebookresearch/CPC_audio b98a1bd",
        note="`forward_frames` gives a context every 10 ms; "
        "that the context is one LSTM of 256 is the code's default, unverified; licence: the "
        f"repository's; {_NO_HASH} (sha256='d0f474de', if the name is made as torch.hub's are)",
    )


_CIFAR = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]}

OFFICIAL: tuple[Card, ...] = (
    *_moco(),
    *_moco_v3(),
    *_swav(),
    *_dino(),
    *_masked(),
    *_siamese(),
    *_contrastive(),
    _cpc_audio(),
)
