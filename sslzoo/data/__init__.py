"""LightningDataModules of images, sound and sequences, and `with_views` for a user's own."""

from sslzoo.data.arrays import SequenceArrays
from sslzoo.data.audio.datamodule import AudioDataModule
from sslzoo.data.audio.file_list import AudioList
from sslzoo.data.audio.folder import AudioFolder
from sslzoo.data.audio.librispeech import LibriSpeech
from sslzoo.data.audio.speech_commands import SpeechCommands
from sslzoo.data.datamodule import SampleDataModule, Sets
from sslzoo.data.image.cifar import CIFAR10, CIFAR100
from sslzoo.data.image.datamodule import ImageDataModule, ImageSets
from sslzoo.data.image.davis import Davis
from sslzoo.data.image.file_list import ImageList
from sslzoo.data.image.folder import ImageFolder
from sslzoo.data.image.image_arrays import ImageArrays
from sslzoo.data.image.image_text import ImageTextFolder, ImageTextList
from sslzoo.data.image.imagenet import ImageNet
from sslzoo.data.image.mnist5k import MNIST5k
from sslzoo.data.image.multi_view import Modality, MultiViewFolder
from sslzoo.data.image.segmentation import SegmentationFolder
from sslzoo.data.image.stl10 import STL10
from sslzoo.data.image.user_datasets import HFImages, ImageDataset
from sslzoo.data.inputs import FrameInput, TextInput, WaveformInput
from sslzoo.data.streams.datamodule import ImageShards
from sslzoo.data.streams.image_text import ImageTextShards
from sslzoo.data.text.datamodule import STSB, HFText, TextDataModule, TextLines, TextSets
from sslzoo.data.text.tokenizer import HFTokenizer, TextTokenizer, WordPiece
from sslzoo.data.with_views import with_views

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "STL10",
    "STSB",
    "AudioDataModule",
    "AudioFolder",
    "AudioList",
    "Davis",
    "FrameInput",
    "HFImages",
    "HFText",
    "HFTokenizer",
    "ImageArrays",
    "ImageDataModule",
    "ImageDataset",
    "ImageFolder",
    "ImageList",
    "ImageNet",
    "ImageSets",
    "ImageShards",
    "ImageTextFolder",
    "ImageTextList",
    "ImageTextShards",
    "LibriSpeech",
    "MNIST5k",
    "Modality",
    "MultiViewFolder",
    "SampleDataModule",
    "SegmentationFolder",
    "SequenceArrays",
    "Sets",
    "SpeechCommands",
    "TextDataModule",
    "TextInput",
    "TextLines",
    "TextSets",
    "TextTokenizer",
    "WaveformInput",
    "WordPiece",
    "with_views",
]
