"""FedP2EFT: federated learning to personalise LoRA ranks, after arXiv 2502.04387, written from its equations."""

from mobileicsa.methods.fedp2eft.method import FedP2EFT

METHOD = FedP2EFT()
