"""Trust: a file is data. Which classes it may name, and how objects are built of them."""

from sslzoo.trust.admit import PACKAGES, UntrustedError, admit
from sslzoo.trust.build import LOADERS, build, shell
from sslzoo.trust.checkpoint import hyper_parameters, module_of
from sslzoo.trust.fill import check_fit, fill
from sslzoo.trust.renamed import renamed_arguments

__all__ = [
    "LOADERS",
    "PACKAGES",
    "UntrustedError",
    "admit",
    "build",
    "check_fit",
    "fill",
    "hyper_parameters",
    "module_of",
    "renamed_arguments",
    "shell",
]
