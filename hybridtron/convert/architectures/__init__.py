"""Native architectures of Hugging Face, one module each; `ARCHITECTURES` has them by name."""

from hybridtron.convert.architectures.architecture import Architecture
from hybridtron.convert.architectures.llama import LLAMA, MISTRAL
from hybridtron.convert.architectures.mamba import FALCON_MAMBA, MAMBA
from hybridtron.convert.architectures.mamba2 import MAMBA2
from hybridtron.convert.architectures.nemotron_h import NEMOTRON_H

ARCHITECTURES: dict[str, Architecture] = {
    each.name: each for each in (LLAMA, MISTRAL, MAMBA, FALCON_MAMBA, MAMBA2, NEMOTRON_H)
}
