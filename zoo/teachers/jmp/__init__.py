"""JMP (Shoghi et al., ICLR 2024, arXiv 2310.16802): GemNet-OC, pre-trained on four data sets at once."""
