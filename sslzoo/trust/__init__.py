"""Trust: build objects that a file describes, from allowed classes only."""

from sslzoo.trust.admit import PACKAGES, UntrustedError, admit
from sslzoo.trust.build import LOADERS, PLAIN, build, build_trusted, shell
from sslzoo.trust.checkpoint import hyper_parameters, module_of, read_checkpoint
from sslzoo.trust.fill import check_fit, fill
from sslzoo.trust.pickles import refuse_deep_pickles
from sslzoo.trust.renamed import renamed_arguments
from sslzoo.trust.run_files import forget_other_files, read_config, refuse_objects
from sslzoo.trust.shards import assemble, is_folder_of_shards, outline
from sslzoo.trust.undrawn import undrawn

__all__ = [
    "LOADERS",
    "PACKAGES",
    "PLAIN",
    "UntrustedError",
    "admit",
    "assemble",
    "build",
    "build_trusted",
    "check_fit",
    "fill",
    "forget_other_files",
    "hyper_parameters",
    "is_folder_of_shards",
    "module_of",
    "outline",
    "read_checkpoint",
    "read_config",
    "refuse_deep_pickles",
    "refuse_objects",
    "renamed_arguments",
    "shell",
    "undrawn",
]
