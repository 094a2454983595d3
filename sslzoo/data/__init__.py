"""LightningDataModules of images, sound and sequences, and `with_views` for a user's own."""

from sslzoo.data.arrays import SequenceArrays
from sslzoo.data.audio import AudioDataModule, AudioFolder
from sslzoo.data.base import SampleDataModule, Sets
from sslzoo.data.cifar import CIFAR10, CIFAR100
from sslzoo.data.folder import ImageFolder
from sslzoo.data.imagenet import ImageNet
from sslzoo.data.inputs import FrameInput, TextInput, WaveformInput
from sslzoo.data.librispeech import LibriSpeech
from sslzoo.data.mnist5k import MNIST5k
from sslzoo.data.module import ImageDataModule, ImageSets
from sslzoo.data.multi_view import Modality, MultiViewFolder
from sslzoo.data.speech_commands import SpeechCommands
from sslzoo.data.stl10 import STL10
from sslzoo.data.text import STSB, HFText, TextDataModule, TextLines, TextSets
from sslzoo.data.tokenizer import HFTokenizer, TextTokenizer, WordPiece
from sslzoo.data.views import with_views

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "STL10",
    "STSB",
    "AudioDataModule",
    "AudioFolder",
    "FrameInput",
    "HFText",
    "HFTokenizer",
    "ImageDataModule",
    "ImageFolder",
    "ImageNet",
    "ImageSets",
    "LibriSpeech",
    "MNIST5k",
    "Modality",
    "MultiViewFolder",
    "SampleDataModule",
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
