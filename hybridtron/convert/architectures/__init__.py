"""Native architectures of Hugging Face, one module each; `ARCHITECTURES` has them by name."""

from hybridtron.convert.architectures.architecture import Architecture
from hybridtron.convert.architectures.llama import LLAMA, MISTRAL

ARCHITECTURES: dict[str, Architecture] = {each.name: each for each in (LLAMA, MISTRAL)}
