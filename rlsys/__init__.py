"""rlsys: safety alignment of multimodal LLMs. Nothing under this package imports Ray."""

__version__ = "0.1.0"
